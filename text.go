// text.go formats values for people and parses the lines that the program writes
// for itself: sizes, times, quoted names, key=value lines, lines of input files.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// formatBytes writes n as people do: 81.0 MiB.
func formatBytes(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	value, prefixes := float64(n), "KMGTPE"
	i := -1
	for ; value >= 1024; i++ {
		value /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", value, prefixes[i])
}

// roundDuration rounds d to three digits or so: 12.345678ms helps nobody.
func roundDuration(d time.Duration) time.Duration {
	for unit := time.Second; unit >= time.Microsecond; unit /= 1000 {
		if d >= unit {
			return d.Round(unit / 100)
		}
	}
	return d
}

// formatSeconds writes a time with a precision that suits it: 1.5s, 2m5s.
func formatSeconds(seconds float64) string {
	if seconds < 60 {
		return fmt.Sprintf("%.1fs", seconds)
	}
	return (time.Duration(seconds) * time.Second).String()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// table aligns the columns of rows, two blanks apart.
func table(rows [][]string) string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, printable(cell))
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	return b.String()
}

// plural writes "1 line" or "2 lines".
func plural(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// printable returns s if a terminal shows it as it is, else s quoted.
func printable(s string) string {
	for _, r := range s {
		if !strconv.IsPrint(r) || r == '\uFFFD' {
			return strconv.Quote(s)
		}
	}
	return s
}

// shorten cuts the middle out of s where it has more than n runes.
func shorten(s string, n int) string {
	runes := []rune(s)
	if len(runes) <= n {
		return s
	}
	head := (n - 1) / 2
	return string(runes[:head]) + "…" + string(runes[len(runes)-(n-1-head):])
}

// pathReason drops the operation and the path, which the caller has said.
func pathReason(err error) error {
	if pathErr := (*os.PathError)(nil); errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

// fileLine is a line that says something, without the blanks around it.
type fileLine struct {
	where string // file:line
	text  string
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

// lineFields are the values of a line by their keys. The first thing that is
// wrong with any of them is in err; from then on all are zero.
type lineFields struct {
	values map[string]string
	err    error
}

func parseFields(line string) *lineFields {
	f := &lineFields{values: make(map[string]string)}
	for rest := line; rest != "" && f.err == nil; rest = strings.TrimPrefix(rest, " ") {
		rest = f.takeField(rest)
	}
	if f.err != nil {
		f.err = fmt.Errorf("line %q: %w", line, f.err)
	}
	return f
}

// takeField takes the first field of text, and returns what follows it.
func (f *lineFields) takeField(text string) (rest string) {
	key, rest, found := strings.Cut(text, "=")
	if !found || key == "" || strings.ContainsAny(key, " \"") {
		f.err = fmt.Errorf("no key=value at %q", text)
		return ""
	}
	if !strings.HasPrefix(rest, `"`) {
		end := len(rest)
		if i := strings.IndexByte(rest, ' '); i >= 0 {
			end = i
		}
		f.values[key] = rest[:end]
		return rest[end:]
	}
	quoted, err := strconv.QuotedPrefix(rest)
	if err == nil {
		f.values[key], err = strconv.Unquote(quoted)
	}
	rest = rest[len(quoted):]
	if err != nil || rest != "" && rest[0] != ' ' {
		f.err = fmt.Errorf("%s: not quoted as it should be", key)
	}
	return rest
}

func (f *lineFields) text(key string) string {
	value, found := f.values[key]
	if !found && f.err == nil {
		f.err = fmt.Errorf("%s is missing", key)
	}
	return value
}

func (f *lineFields) integer(key string) int64 {
	return fieldAs(f, key, func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) })
}

func (f *lineFields) unsigned(key string, bits int) uint64 {
	return fieldAs(f, key, func(s string) (uint64, error) { return strconv.ParseUint(s, 10, bits) })
}

// seconds reads a number of seconds with its unit: 1.5s.
func (f *lineFields) seconds(key string) float64 {
	return fieldAs(f, key, func(s string) (float64, error) {
		digits, found := strings.CutSuffix(s, "s")
		if !found {
			return 0, strconv.ErrSyntax
		}
		return strconv.ParseFloat(digits, 64)
	})
}

func fieldAs[T any](f *lineFields, key string, parse func(string) (T, error)) (value T) {
	text := f.text(key)
	if f.err != nil {
		return value
	}
	value, err := parse(text)
	if err != nil {
		f.err = fmt.Errorf("%s=%s: %w", key, text, err)
	}
	return value
}

// parseLines reads every line of text.
func parseLines[T any](text string, parse func(line string) (T, error)) ([]T, error) {
	all := []T{}
	for line := range strings.Lines(text) {
		value, err := parse(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, err
		}
		all = append(all, value)
	}
	return all, nil
}
