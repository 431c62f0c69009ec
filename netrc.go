// netrc.go reads the file where logins are kept for ftp, curl, git and others,
// and finds the one for a host. It never sends one, and its errors name the
// line but no word of it.

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// netrc is the entries of a netrc, in their order. There is no standard for the
// file: this is what ftp(1) and curl agree on, with curl's quotes.
type netrc []netrcEntry

type netrcEntry struct {
	machine  string // "" is the default entry, for every host
	user     string
	password string
}

// find returns the entry for host; for that user there, if user is not "". The
// default entry comes last wherever it stands.
func (n netrc) find(host, user string) (netrcEntry, bool) {
	for _, machine := range []string{host, ""} {
		for _, e := range n {
			if strings.EqualFold(e.machine, machine) && (user == "" || user == e.user) {
				return e, true
			}
		}
	}
	return netrcEntry{}, false
}

// loadNetrc reads the file of $NETRC, else ~/.netrc, which need not be there.
// Who else may read it is the user's business, as with curl.
func loadNetrc() (netrc, error) {
	path := os.Getenv("NETRC")
	named := path != ""
	if !named {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, nil
		}
		path = filepath.Join(home, ".netrc")
	}
	data, err := os.ReadFile(path)
	if !named && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("netrc %s: %w (the variable NETRC names another, /dev/null none)", path, pathReason(err))
	}
	entries, err := parseNetrc(string(data))
	if err != nil {
		return nil, fmt.Errorf("netrc %s:%w", path, err)
	}
	return entries, nil
}

// netrcParser is a position in the text of a netrc.
type netrcParser struct {
	text    string // what is left
	line    int    // that text starts on, from 1
	entries netrc
}

// parseNetrc reads the text of a netrc. Its error starts with the line's number.
func parseNetrc(text string) (netrc, error) {
	p := &netrcParser{text: strings.ReplaceAll(text, "\r\n", "\n"), line: 1}
	for p.skipBlanks(); p.text != ""; p.skipBlanks() {
		line := p.line
		if err := p.statement(); err != nil {
			return nil, fmt.Errorf("%d: %w", line, err)
		}
	}
	return p.entries, nil
}

// statement reads a keyword and what belongs to it. A word that is none is
// passed over: other programs have keywords of their own.
func (p *netrcParser) statement() error {
	if p.text[0] == '#' {
		p.skipPast("\n")
		return nil
	}
	keyword, err := p.token()
	switch {
	case err != nil:
		return err
	case keyword == "default":
		p.entries = append(p.entries, netrcEntry{})
		return nil
	case keyword == "macdef":
		// A macro ends with an empty line.
		p.skipPast("\n\n")
		return nil
	}
	return p.setting(keyword)
}

// setting reads the value of a keyword that has one.
func (p *netrcParser) setting(keyword string) error {
	switch keyword {
	case "machine", "login", "password", "account":
	default:
		return nil
	}
	if p.skipBlanks(); p.text == "" {
		return fmt.Errorf("nothing follows %q", keyword)
	}
	value, err := p.token()
	switch {
	case err != nil:
		return err
	case keyword == "machine" && value == "":
		return errors.New("the machine has no name")
	case keyword == "machine":
		p.entries = append(p.entries, netrcEntry{machine: value})
		return nil
	case len(p.entries) == 0:
		return fmt.Errorf("%q stands before the first machine", keyword)
	}
	last := &p.entries[len(p.entries)-1]
	switch keyword {
	case "login":
		last.user = value
	case "password":
		last.password = value
	}
	return nil
}

// token reads a word, or what stands in double quotes.
//
// REQUIRES: p.text starts with no blank and is not empty
func (p *netrcParser) token() (string, error) {
	if p.text[0] == '"' {
		return p.quoted()
	}
	end := strings.IndexAny(p.text, " \t\r\n")
	if end < 0 {
		end = len(p.text)
	}
	return p.take(end), nil
}

// quoted reads up to the closing quote, on the same line. A backslash takes the
// next character as it is, but for \n, \r and \t.
func (p *netrcParser) quoted() (string, error) {
	var value strings.Builder
	for i := 1; i < len(p.text) && p.text[i] != '\n'; i++ {
		switch c := p.text[i]; {
		case c == '"':
			p.take(i + 1)
			return value.String(), nil
		case c == '\\' && i+1 < len(p.text):
			i++
			value.WriteByte(unescaped(p.text[i]))
		default:
			value.WriteByte(c)
		}
	}
	return "", errors.New("a quote is not closed on its line")
}

func unescaped(c byte) byte {
	switch c {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return c
}

func (p *netrcParser) skipBlanks() {
	p.take(len(p.text) - len(strings.TrimLeft(p.text, " \t\r\n")))
}

// skipPast goes behind the next mark, or to the end.
func (p *netrcParser) skipPast(mark string) {
	before, _, found := strings.Cut(p.text, mark)
	if found {
		p.take(len(before) + len(mark))
		return
	}
	p.take(len(p.text))
}

// take returns the next n bytes and goes behind them.
func (p *netrcParser) take(n int) string {
	taken := p.text[:n]
	p.line += strings.Count(taken, "\n")
	p.text = p.text[n:]
	return taken
}
