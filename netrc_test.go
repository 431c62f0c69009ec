// Tests of the netrc: its grammar as ftp, curl and git read it, which entry is
// for whom, and errors that name a line and show none of it.

package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestParseNetrc(t *testing.T) {
	tests := []struct {
		about, text string
		want        netrc
	}{
		{"nothing", "", nil},
		{"blanks", " \n\t\r\n", nil},
		{"one line", "machine h login u password p", netrc{{"h", "u", "p"}}},
		{"many lines", "machine h\r\n\tlogin u\r\n\tpassword p\r\n", netrc{{"h", "u", "p"}}},
		{"password first", "machine h password p login u", netrc{{"h", "u", "p"}}},
		{"no password", "machine h login u\nmachine i password p", netrc{{"h", "u", ""}, {"i", "", "p"}}},
		{"account", "machine h login u account a password p", netrc{{"h", "u", "p"}}},
		{"default", "machine h login u password p default login d password e", netrc{{"h", "u", "p"}, {"", "d", "e"}}},
		{"comments", "# machine c login c\nmachine h # machine d\nlogin u # x\n#\npassword p #", netrc{{"h", "u", "p"}}},
		{"a password like a comment", "machine h login u password #p", netrc{{"h", "u", "#p"}}},
		{"a password like a keyword", "machine h login login password machine", netrc{{"h", "login", "machine"}}},
		{"quotes", `machine "h" login "u v" password "a\"b\\c\td#"`, netrc{{"h", "u v", "a\"b\\c\td#"}}},
		{"quotes inside", `machine h login u"v password a\b"`, netrc{{"h", `u"v`, `a\b"`}}},
		{"empty quotes", `machine h login u password "" account x`, netrc{{"h", "u", ""}}},
		{"unknown words", "machine h port 443 login u password p", netrc{{"h", "u", "p"}}},
		{"macro", "machine h login u password p macdef init\ncd x\nmachine no login no\n\nmachine i login v", netrc{{"h", "u", "p"}, {"i", "v", ""}}},
		{"macro, CRLF", "macdef m\r\nmachine no\r\n\r\nmachine h login u", netrc{{"h", "u", ""}}},
		{"macro at the end", "machine h login u\nmacdef m\nmachine no\n", netrc{{"h", "u", ""}}},
	}
	for _, test := range tests {
		got, err := parseNetrc(test.text)
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, %v; want %v", test.about, got, err, test.want)
		}
	}
}

func TestBadNetrc(t *testing.T) {
	tests := []struct{ text, says string }{
		{"machine", `:1: nothing follows "machine"`},
		{"machine h\nlogin SECRET\npassword \n", `:3: nothing follows "password"`},
		{"login SECRET password SECRET", `:1: "login" stands before the first machine`},
		{"\n\nmachine h password \"SECRET\nSECRET\"", ":3: a quote is not closed"},
		{`machine h password "SECRET\`, ":1: a quote is not closed"},
		{`machine "" login SECRET`, ":1: the machine has no name"},
	}
	for _, test := range tests {
		path := writeTestFile(t, test.text)
		t.Setenv("NETRC", path)
		_, err := loadNetrc()
		requireRefusal(t, test.text, err, "netrc "+path+test.says)
	}
}

func TestNetrcFind(t *testing.T) {
	entries := netrc{{"", "d", "default"}, {"h", "u", "1"}, {"h", "v", "2"}, {"i", "", ""}}
	tests := []struct {
		host, user, password string
		ok                   bool
	}{
		{"h", "", "1", true},
		{"H", "", "1", true},
		{"h", "u", "1", true},
		{"h", "v", "2", true},
		{"h", "d", "default", true},
		{"h", "w", "", false},
		{"i", "", "", true},
		{"sub.h", "", "default", true},
		{"sub.h", "u", "", false},
	}
	for _, test := range tests {
		got, ok := entries.find(test.host, test.user)
		if ok != test.ok || got.password != test.password {
			t.Errorf("find(%q, %q) = %v, %v; want password %q, %v", test.host, test.user, got, ok, test.password, test.ok)
		}
	}
	if got, ok := (netrc{{"h", "u", "1"}}).find("other", ""); ok {
		t.Errorf("without a default, another host gets %v", got)
	}
}

func TestLoadNetrc(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("NETRC", "")
	if got, err := loadNetrc(); got != nil || err != nil {
		t.Errorf("without a file: %v, %v", got, err)
	}
	// Readable by others, and still used.
	if err := os.WriteFile(filepath.Join(home, ".netrc"), []byte("machine h login home"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := loadNetrc(); err != nil || !slices.Equal(got, netrc{{"h", "home", ""}}) {
		t.Errorf("~/.netrc: %v, %v", got, err)
	}
	t.Setenv("NETRC", writeTestFile(t, "machine h login named"))
	if got, err := loadNetrc(); err != nil || !slices.Equal(got, netrc{{"h", "named", ""}}) {
		t.Errorf("$NETRC: %v, %v", got, err)
	}
	t.Setenv("NETRC", "/no/such/file")
	_, err := loadNetrc()
	requireRefusal(t, "$NETRC that is not there", err, "netrc /no/such/file: no such file")
	t.Setenv("NETRC", "/dev/null")
	if got, err := loadNetrc(); got != nil || err != nil {
		t.Errorf("/dev/null: %v, %v", got, err)
	}
	t.Setenv("NETRC", home)
	_, err = loadNetrc()
	requireRefusal(t, "a directory", err, "is a directory (the variable NETRC")
}

// TestNetrcIsNotReadInVain: a netrc that nothing would use stops nobody.
func TestNetrcIsNotReadInVain(t *testing.T) {
	t.Setenv("NETRC", "/no/such/file")
	for _, opts := range []options{
		{Header: []string{"Authorization: x"}},
		{BearerFile: writeTestFile(t, "token")},
	} {
		if _, err := loadAccess(opts); err != nil {
			t.Errorf("%+v: %v", opts, err)
		}
	}
}
