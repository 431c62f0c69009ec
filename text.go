// text.go formats values for people and parses the lines that the program writes
// for itself: times, tables, key=value lines, and lines of input files.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
)

// roundDuration keeps about three digits of d, as in 12.3ms.
func roundDuration(d time.Duration) time.Duration {
	for unit := time.Second; unit >= time.Microsecond; unit /= 1000 {
		if d >= unit {
			return d.Round(unit / 100)
		}
	}
	return d
}

// formatSeconds writes a time in seconds, with tenths below a minute: 1.5s, 2m5s.
func formatSeconds(seconds float64) string {
	if seconds < 60 {
		return fmt.Sprintf("%.1fs", seconds)
	}
	return (time.Duration(seconds) * time.Second).String()
}

// table aligns the columns of rows, with two blanks between them.
func table(rows [][]string) string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		var cells []string
		for _, cell := range row {
			cells = append(cells, printable(cell))
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	w.Flush()
	return b.String()
}

// tableWithin is table for a terminal with that many columns, 0 for any number. If a
// row is wider, the last cell of each row follows on lines of its own.
func tableWithin(columns int, rows [][]string) string {
	whole, widest := table(rows), 0
	for line := range strings.Lines(whole) {
		widest = max(widest, utf8.RuneCountInString(line)-1)
	}
	if columns == 0 || widest <= columns {
		return whole
	}
	const indent = "      "
	var heads [][]string
	for _, row := range rows {
		heads = append(heads, row[:len(row)-1])
	}
	var b strings.Builder
	for i, line := range slices.Collect(strings.Lines(table(heads))) {
		b.WriteString(line)
		for _, part := range wrap(printable(rows[i][len(rows[i])-1]), columns-len(indent)) {
			fmt.Fprintf(&b, "%s%s\n", indent, part)
		}
	}
	return b.String()
}

// plural writes "1 line" or "2 lines", "1 retry" or "2 retries".
func plural(n int64, what string) string {
	return fmt.Sprintf("%d %s", n, english.PluralWord(int(n), what, ""))
}

// printable quotes s if a terminal would not show it as it is.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) || r == '\uFFFD' }) {
		return strconv.Quote(s)
	}
	return s
}

// foreignBytes bounds the text of others in one message.
const foreignBytes = 500

var unescapeQuoted = strings.NewReplacer(`\"`, `"`, `\\`, `\`)

// foreign returns text that a server, a file or another process chose, as messages may
// show it: what is not printable is escaped, and the end is cut off.
func foreign(text string) string {
	quoted := strconv.Quote(text)
	shown := unescapeQuoted.Replace(quoted[1 : len(quoted)-1])
	if len(shown) > foreignBytes {
		shown = strings.ToValidUTF8(shown[:foreignBytes-len("...")], "") + "..."
	}
	return shown
}

// wrap splits text into lines of at most width bytes, except for longer words.
func wrap(text string, width int) []string {
	lines := []string{""}
	for _, word := range strings.Fields(text) {
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last = word
		case len(*last)+1+len(word) <= width:
			*last += " " + word
		default:
			lines = append(lines, word)
		}
	}
	return lines
}

// shellWord matches what a shell takes as it is written.
var shellWord = regexp.MustCompile(`^[0-9A-Za-z%+,./:@_\x{80}-\x{10FFFF}-]+$`)

// shellQuote returns s as a person types it into a shell: control characters as bash has them in $'...'.
func shellQuote(s string) string {
	switch {
	case !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl):
		quoted := strconv.Quote(s)
		return "$'" + strings.NewReplacer(`\"`, `"`, "'", `\'`).Replace(quoted[1:len(quoted)-1]) + "'"
	case !shellWord.MatchString(s):
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return s
}

// pathReason drops the operation and the path from an error of package os: the caller's own text names them.
func pathReason(err error) error {
	if pathErr := (*os.PathError)(nil); errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

// fileLine is a line of an input file, without the blanks around it.
type fileLine struct {
	where string // file:line
	text  string
}

// maxInputBytes bounds a file that is read at the start. A list of that size holds a hundred thousand long URLs.
const maxInputBytes = 32 << 20

// readInput returns what r holds, unless that is more than maxInputBytes. BLOCKS until r ends.
func readInput(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxInputBytes+1))
	if err == nil && len(data) > maxInputBytes {
		err = fmt.Errorf("larger than %s: no input of this program is", humanize.IBytes(uint64(maxInputBytes)))
	}
	return data, err
}

// readInputFile is readInput for the file at path.
func readInputFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readInput(f)
}

// readLines returns the lines of the file at path except those that are blank or start with '#'. "-" is stdin, unless
// that is nil. BLOCKS until stdin ends.
func readLines(path string, stdin io.Reader) (lines []fileLine, err error) {
	name, data := redactArg(path), []byte(nil)
	if path == "-" && stdin != nil {
		name = "standard input"
		data, err = readInput(stdin)
	} else {
		data, err = readInputFile(path)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%s: %w: name an existing file", name, pathReason(err))
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, pathReason(err))
	}
	// Windows editors put a byte order mark before the first line.
	text := strings.TrimPrefix(string(data), "\ufeff")
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, fileLine{where: fmt.Sprintf("%s:%d", name, i+1), text: line})
		}
	}
	return lines, nil
}

// scanLine parses a line that format wrote into fields, the parts of value. Further
// fields of a later version may follow, as key=value.
func scanLine(line, format string, value fmt.Stringer, fields ...any) error {
	// Sscanf knows no precision.
	_, err := fmt.Sscanf(line, strings.ReplaceAll(format, "%.1f", "%f"), fields...)
	if err != nil {
		return fmt.Errorf("line %q: %w", line, err)
	}
	// Sscanf is lenient about blanks and ignores the rest. Writing value again is not.
	rest, same := strings.CutPrefix(line, value.String())
	if !same || rest != "" && (rest[0] != ' ' || !strings.Contains(rest, "=")) {
		return fmt.Errorf("line %q is not of the form %q", line, format)
	}
	return nil
}

// parseLines parses every line of text, and stops at the first error.
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
