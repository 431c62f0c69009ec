// Tests of the lists of sources: what counts as a line, which source comes
// first, and where an error says it is.

package main

import (
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func TestNamedSources(t *testing.T) {
	list := writeTestFile(t, "\ufeff# comment\r\nhttp://h/1\r\n\r\n  # another\n\t n=http://h/2#part \t\nhttp://h/3?a=b#c")
	stdin := strings.NewReader("a b=http://h/4\n\n")
	sources, err := namedSources([]string{"http://h/0"}, []string{list, "-"}, stdin)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, src := range sources {
		got = append(got, src.name+"="+src.url.String())
	}
	want := []string{"=http://h/0", "=http://h/1", "n=http://h/2", "=http://h/3?a=b", "a b=http://h/4"}
	if !slices.Equal(got, want) {
		t.Errorf("sources are %q, want %q", got, want)
	}
}

func TestNamedSourcesWithoutAny(t *testing.T) {
	if sources, err := namedSources(nil, nil, nil); len(sources) != 0 || err != nil {
		t.Errorf("without a list: %v, %v", sources, err)
	}
	empty := writeTestFile(t, "# nothing\n")
	if sources, err := namedSources([]string{"http://h/0"}, []string{empty}, nil); len(sources) != 1 || err != nil {
		t.Errorf("beside a source an empty list is fine, but: %v, %v", sources, err)
	}
	// The demo is for who names nothing, not for an empty list.
	_, err := namedSources(nil, []string{empty}, nil)
	requireRefusal(t, "an empty list", err, "list "+empty+": it names no source")
}

func TestBadLists(t *testing.T) {
	bad := "# comment\r\nhttp://h/1\r\n\r\nftp://user:SECRET@h/x?sig=SECRET\r\n"
	path := writeTestFile(t, bad)
	_, err := namedSources(nil, []string{path}, nil)
	requireRefusal(t, "a file", err, "list "+path+`:4: source "ftp://..."`)

	_, err = namedSources(nil, []string{"-"}, strings.NewReader(bad))
	requireRefusal(t, "stdin", err, "list standard input:4: source")

	_, err = namedSources(nil, []string{"-"}, iotest.ErrReader(iotest.ErrTimeout))
	requireRefusal(t, "stdin that fails", err, "list standard input: timeout")

	_, err = namedSources(nil, []string{"/no/such/file"}, nil)
	requireRefusal(t, "no file", err, "list /no/such/file: no such file")

	_, err = namedSources([]string{"h/x?sig=SECRET"}, []string{"/no/such/file"}, nil)
	requireRefusal(t, "the command line comes first", err, `source "h/x..."`)
}
