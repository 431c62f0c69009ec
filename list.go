// list.go reads what people write into files line by line: the sources of
// --list and the headers of --header @FILE. Its errors name file and line, and
// of a line no more than the reader of that line shows.

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// fileLine is a line that says something, without the blanks around it.
type fileLine struct {
	where string // file:line
	text  string
}

// namedSources are the sources of the command line, and after them those of the
// lists. A list is a file of sources, one a line; "-" is stdin.
//
// BLOCKS until stdin ends, where a list is "-".
func namedSources(args, lists []string, stdin io.Reader) ([]source, error) {
	sources, err := parseSources(args)
	if err != nil {
		return nil, err
	}
	for _, list := range lists {
		listed, err := readList(list, stdin)
		if err != nil {
			return nil, fmt.Errorf("list %w", err)
		}
		sources = append(sources, listed...)
	}
	if len(lists) > 0 && len(sources) == 0 {
		return nil, fmt.Errorf("list %s: it names no source", strings.Join(lists, ", "))
	}
	return sources, nil
}

func readList(path string, stdin io.Reader) ([]source, error) {
	lines, err := listLines(path, stdin)
	if err != nil {
		return nil, err
	}
	sources := make([]source, 0, len(lines))
	for _, line := range lines {
		src, err := parseSource(line.text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line.where, err)
		}
		sources = append(sources, src)
	}
	return sources, nil
}

func listLines(path string, stdin io.Reader) ([]fileLine, error) {
	if path == "-" {
		return readLines("standard input", stdin)
	}
	return readLinesOf(path)
}

// readLinesOf returns the lines of the file at path that say something.
func readLinesOf(path string) ([]fileLine, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, pathReason(err))
	}
	defer f.Close()
	return readLines(path, f)
}

// maxListBytes bounds a file that is read whole: a hundred thousand long URLs.
const maxListBytes = 32 << 20

// readLines returns the lines of r, which errors call name, without those that
// are blank or start with '#'.
func readLines(name string, r io.Reader) ([]fileLine, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxListBytes+1))
	if err == nil && len(data) > maxListBytes {
		err = fmt.Errorf("larger than %s: this is no list", formatBytes(maxListBytes))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, pathReason(err))
	}
	// Editors of Windows put a byte order mark before the first line.
	text := strings.TrimPrefix(string(data), "\ufeff")
	var lines []fileLine
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, fileLine{where: fmt.Sprintf("%s:%d", name, i+1), text: line})
		}
	}
	return lines, nil
}
