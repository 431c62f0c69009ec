// fs_lines.go reads the lines of the control directory's files back: words of
// the form key=value, a value being one word or quoted as %q does. It knows no
// key; who writes a line reads it too, beside each other.

package main

import (
	"fmt"
	"strconv"
	"strings"
)

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
