// Tests of the rule on locks that the package's doc comment states, by the source alone:
// whoever holds a mutex calls no function that takes one or waits, and nobody else calls a
// function whose name ends in Locked. A function that waits for a channel says so.

package main

import (
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"
	"testing"
)

// fewestLocked is the least number of calls under a mutex that the test must see.
const fewestLocked = 150

// beforeOthers call a function that ends in Locked before another goroutine has the value.
var beforeOthers = []string{"newFileSystem", "newControlDir"}

// lockWalk goes through one function in the order of its statements. It leaves out what
// another goroutine runs, and function literals: they run at another time, or as the
// function documents that gets them.
type lockWalk struct {
	*packageSource
	held  bool // a mutex, at this statement
	visit func(n ast.Node, held bool)
}

// mutexCall returns "Lock" or "Unlock" if n calls that of a field mu, else "".
func mutexCall(n ast.Node) string {
	call, _ := n.(*ast.CallExpr)
	if call == nil {
		return ""
	}
	method, _ := call.Fun.(*ast.SelectorExpr)
	if method == nil || !slices.Contains([]string{"Lock", "Unlock"}, method.Sel.Name) {
		return ""
	}
	if field, ok := method.X.(*ast.SelectorExpr); ok && field.Sel.Name == "mu" {
		return method.Sel.Name
	}
	return ""
}

// block goes through statements. What a part of them that does not go on does to the mutex
// is of no concern to those behind it.
func (w *lockWalk) block(list []ast.Stmt) {
	before := w.held
	for _, stmt := range list {
		w.node(stmt)
		switch stmt := stmt.(type) {
		case *ast.ReturnStmt:
			w.held = before
		case *ast.BranchStmt:
			if stmt.Tok != token.FALLTHROUGH {
				w.held = before
			}
		}
	}
}

func (w *lockWalk) node(root ast.Node) {
	ast.Inspect(root, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit, *ast.GoStmt:
			return false
		case *ast.BlockStmt:
			w.block(n.List)
			return false
		case *ast.CaseClause:
			w.block(n.Body)
			return false
		case *ast.CommClause:
			w.block(n.Body)
			return false
		case *ast.DeferStmt:
			if mutexCall(n.Call) != "" {
				return false // the mutex is held to the end
			}
		case *ast.CallExpr:
			if call := mutexCall(n); call != "" {
				w.held = call == "Lock"
			}
		}
		if n != nil {
			w.visit(n, w.held)
		}
		return true
	})
}

// callee returns the function of this package that n calls, nil for none.
func (s *packageSource) callee(n ast.Node) types.Object {
	call, _ := n.(*ast.CallExpr)
	if call == nil {
		return nil
	}
	ident, _ := call.Fun.(*ast.Ident)
	if method, ok := call.Fun.(*ast.SelectorExpr); ok {
		ident = method.Sel
	}
	if f, ok := s.info.Uses[ident].(*types.Func); ok && f.Pkg() == s.pkg {
		return f
	}
	return nil
}

// waits reports whether n waits for a channel.
func waits(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.SelectStmt:
		return !slices.ContainsFunc(n.Body.List, func(c ast.Stmt) bool { return c.(*ast.CommClause).Comm == nil })
	case *ast.UnaryExpr:
		return n.Op == token.ARROW
	case *ast.SendStmt:
		return true
	}
	return false
}

func TestNobodyWaitsUnderALock(t *testing.T) {
	s := parsePackage(t)
	says := make(map[types.Object]bool)   // that it waits: BLOCKS
	blocks := make(map[types.Object]bool) // waits
	takes := make(map[types.Object]bool)  // a mutex
	calls := make(map[types.Object][]types.Object)
	each := func(visit func(f *ast.FuncDecl, n ast.Node, held bool)) {
		for _, file := range s.files {
			for _, decl := range file.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && f.Body != nil {
					w := &lockWalk{packageSource: s, held: strings.HasSuffix(f.Name.Name, "Locked")}
					w.visit = func(n ast.Node, held bool) { visit(f, n, held) }
					w.block(f.Body.List)
				}
			}
		}
	}
	each(func(f *ast.FuncDecl, n ast.Node, _ bool) {
		name := s.info.Defs[f.Name]
		says[name] = strings.Contains(f.Doc.Text(), "BLOCKS ")
		blocks[name] = blocks[name] || says[name] || waits(n)
		takes[name] = takes[name] || mutexCall(n) == "Lock"
		if g := s.callee(n); g != nil {
			calls[name] = append(calls[name], g)
		}
	})
	for again := true; again; {
		again = false
		for f, callees := range calls {
			for _, g := range callees {
				again = again || takes[g] && !takes[f] || blocks[g] && !blocks[f]
				takes[f], blocks[f] = takes[f] || takes[g], blocks[f] || blocks[g]
			}
		}
	}
	locked := 0
	each(func(f *ast.FuncDecl, n ast.Node, held bool) {
		at, g := s.fset.Position(n.Pos()), s.callee(n)
		switch {
		case !held && g != nil && strings.HasSuffix(g.Name(), "Locked") && !slices.Contains(beforeOthers, f.Name.Name):
			t.Errorf("%v: %s calls %s without the mutex", at, f.Name.Name, g.Name())
		case !held && waits(n) && !says[s.info.Defs[f.Name]]:
			t.Errorf("%v: %s waits, and its comment does not say BLOCKS", at, f.Name.Name)
		case !held:
		case waits(n):
			t.Errorf("%v: %s waits with a mutex held", at, f.Name.Name)
		case g != nil && takes[g]:
			t.Errorf("%v: %s has a mutex, and calls %s, which takes one", at, f.Name.Name, g.Name())
		case g != nil && blocks[g]:
			t.Errorf("%v: %s has a mutex, and calls %s, which waits", at, f.Name.Name, g.Name())
		case g != nil:
			locked++
		}
	})
	if locked < fewestLocked {
		t.Errorf("calls under a mutex: got %d, want at least %d", locked, fewestLocked)
	}
}
