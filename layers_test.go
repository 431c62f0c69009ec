// Tests of the structure of the source: a file uses names of its own layer and of
// those below, never of one above, and no local name hides one of the package.

package main

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"go/types"
	"path"
	"slices"
	"strings"
	"testing"
)

// layers lists the files of each layer, the highest first. A pattern ends in *.
var layers = []struct {
	name  string
	files []string
}{
	{"program", []string{"main.go", "cli.go", "sources.go", "command_*", "hangs*", "selftest*"}},
	{"mount", []string{"mount.go"}},
	{"fs", []string{"fs*"}},
	{"store", []string{"store_*"}},
	{"origin", []string{"origin*"}},
	{"values", []string{"credentials.go", "source.go", "rangeset.go", "trace.go", "goroutineid.go", "text.go"}},
}

const (
	storeLayer = 3 // index in layers

	// fewestUses is how many uses of names across files a look at the source must
	// find. Fewer mean that the look, not the source, is at fault.
	fewestUses = 500

	// longestFile is in lines.
	longestFile = 600
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

// packageSource is the program's source with the meaning of each name.
type packageSource struct {
	fset *token.FileSet
	pkg  *types.Package
	info types.Info
}

func (s *packageSource) file(pos token.Pos) string { return s.fset.Position(pos).Filename }

// importNothing imports every package as an empty one: only this package's own
// names matter here.
type importNothing struct{}

func (importNothing) Import(path string) (*types.Package, error) {
	pkg := types.NewPackage(path, path[strings.LastIndex(path, "/")+1:])
	pkg.MarkComplete()
	return pkg, nil
}

// parsePackage checks the types of all files that are built, tests excluded.
func parsePackage(t *testing.T) *packageSource {
	t.Helper()
	built, err := build.Default.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &packageSource{fset: token.NewFileSet()}
	var files []*ast.File
	for _, name := range built.GoFiles {
		f, err := parser.ParseFile(s.fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	s.info = types.Info{Uses: make(map[*ast.Ident]types.Object), Defs: make(map[*ast.Ident]types.Object)}
	config := types.Config{Importer: importNothing{}, Error: func(error) {}}
	s.pkg, _ = config.Check("main", s.fset, files, &s.info)
	return s
}

func TestEveryFileKeepsToItsLayer(t *testing.T) {
	s := parsePackage(t)
	s.fset.Iterate(func(f *token.File) bool {
		if layerOf(f.Name()) < 0 {
			t.Errorf("%s is in no layer: add it to layers", f.Name())
		}
		if f.LineCount() > longestFile {
			t.Errorf("%s has %d lines, more than %d", f.Name(), f.LineCount(), longestFile)
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
	report := make([]string, 0, len(found))
	for f := range found {
		report = append(report, f)
	}
	slices.Sort(report)
	for _, f := range report {
		t.Error(f)
	}
	if across < fewestUses {
		t.Errorf("only %d uses of names across files were seen, want at least %d", across, fewestUses)
	}
}

// isMember reports whether obj is a field or method of the named type itself, not
// of a type embedded in it.
func isMember(obj types.Object, typeName string, pkg *types.Package) bool {
	owner := types.NewPointer(pkg.Scope().Lookup(typeName).Type())
	found, index, _ := types.LookupFieldOrMethod(owner, true, pkg, obj.Name())
	return found == obj && len(index) == 1
}

// A local name that is also the package's makes a reader look it up twice.
func TestNoPackageLevelNameIsShadowed(t *testing.T) {
	s := parsePackage(t)
	for ident, obj := range s.info.Defs {
		if obj == nil || obj.Parent() == nil || obj.Parent() == s.pkg.Scope() {
			continue // a field, a method, or the package's own name
		}
		if s.pkg.Scope().Lookup(ident.Name) != nil {
			t.Errorf("%v: %s is a name of the package too", s.fset.Position(ident.Pos()), ident.Name)
		}
	}
}
