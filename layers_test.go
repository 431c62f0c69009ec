// Tests of the structure of the source. A file uses names of its own layer and of
// lower ones only, no file is too long, and no local name hides a package-level one.

package main

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
)

// layers lists the files of each layer, the highest first, as patterns of path.Match.
var layers = []struct {
	name  string
	files []string
}{
	{"program", []string{"main.go", "cli.go", "sources.go", "command_*", "hangs*", "selftest*"}},
	{"mount", []string{"mount*"}},
	{"fs", []string{"fs*"}},
	{"store", []string{"store_*"}},
	{"origin", []string{"origin*"}},
	{"values", []string{"credentials.go", "source.go", "rangeset.go", "trace.go", "goroutineid.go", "text.go"}},
}

const (
	storeLayer = 3 // index in layers

	// fewestUses is the least number of uses of names across files that the test must
	// see. If it sees fewer, it does not understand the source.
	fewestUses = 500

	longestFile = 600 // lines
)

// layerOf returns the index in layers of the file's layer, or -1.
func layerOf(file string) int {
	for i, layer := range layers {
		for _, pattern := range layer.files {
			if ok, _ := path.Match(pattern, file); ok {
				return i
			}
		}
	}
	return -1
}

// packageSource is the program's source with the object that each name stands for.
type packageSource struct {
	fset  *token.FileSet
	files []*ast.File
	pkg   *types.Package
	info  types.Info
}

func (s *packageSource) file(pos token.Pos) string { return s.fset.Position(pos).Filename }

// importNothing imports each package as an empty one: these tests look only at the
// names of this package.
type importNothing struct{}

func (importNothing) Import(path string) (*types.Package, error) {
	pkg := types.NewPackage(path, path[strings.LastIndex(path, "/")+1:])
	pkg.MarkComplete()
	return pkg, nil
}

// parsePackage parses and type-checks the files of the program, without the tests.
func parsePackage(t *testing.T) *packageSource {
	t.Helper()
	built, err := build.Default.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &packageSource{fset: token.NewFileSet()}
	for _, name := range built.GoFiles {
		f, err := parser.ParseFile(s.fset, name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		s.files = append(s.files, f)
	}
	s.info = types.Info{Uses: make(map[*ast.Ident]types.Object), Defs: make(map[*ast.Ident]types.Object)}
	config := types.Config{Importer: importNothing{}, Error: func(error) {}}
	s.pkg, _ = config.Check("main", s.fset, s.files, &s.info)
	return s
}

func TestEveryFileKeepsToItsLayer(t *testing.T) {
	s := parsePackage(t)
	s.fset.Iterate(func(f *token.File) bool {
		if layerOf(f.Name()) < 0 {
			t.Errorf("%s is in no layer: add it to layers", f.Name())
		}
		if f.LineCount() > longestFile {
			t.Errorf("lines of %s: got %d, want at most %d", f.Name(), f.LineCount(), longestFile)
		}
		return true
	})
	across := 0
	found := make(map[string]bool)
	for ident, obj := range s.info.Uses {
		if obj.Pkg() != s.pkg || s.file(ident.Pos()) == s.file(obj.Pos()) {
			continue
		}
		across++
		user, owner := layerOf(s.file(ident.Pos())), layerOf(s.file(obj.Pos()))
		switch {
		case owner < user:
			found[s.file(ident.Pos())+" ("+layers[user].name+") uses "+obj.Name()+" of "+s.file(obj.Pos())+" ("+layers[owner].name+")"] = true
		case owner == storeLayer && user < storeLayer && !obj.Exported() && isMember(obj, "TempFileStore", s.pkg):
			found[s.file(ident.Pos())+" uses "+obj.Name()+" of TempFileStore, which is not exported"] = true
		}
	}
	for _, report := range slices.Sorted(maps.Keys(found)) {
		t.Error(report)
	}
	if across < fewestUses {
		t.Errorf("uses of names across files: got %d, want at least %d", across, fewestUses)
	}
}

// isMember reports whether obj is a field or method that the named type itself
// declares, not one of an embedded type.
func isMember(obj types.Object, typeName string, pkg *types.Package) bool {
	owner := types.NewPointer(pkg.Scope().Lookup(typeName).Type())
	found, index, _ := types.LookupFieldOrMethod(owner, true, pkg, obj.Name())
	return found == obj && len(index) == 1
}

// In a flat package, a local name that hides a package-level one misleads readers.
func TestNoPackageLevelNameIsShadowed(t *testing.T) {
	s := parsePackage(t)
	for ident, obj := range s.info.Defs {
		if obj == nil || obj.Parent() == nil || obj.Parent() == s.pkg.Scope() {
			continue // a field, a method, or the package's own name
		}
		if s.pkg.Scope().Lookup(ident.Name) != nil {
			t.Errorf("%v: %s is a package-level name too", s.fset.Position(ident.Pos()), ident.Name)
		}
	}
}
