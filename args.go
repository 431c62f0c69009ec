// The command line accepts every long flag with one dash as well as with two,
// which its parser does not. This file rewrites the arguments before they are
// parsed. It knows no flag by name, never changes a flag's value or a source,
// and leaves every complaint to the parser.

package main

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/alecthomas/kong"
)

// doubleDash returns args with each known long flag that has one dash given
// its second: -mount DIR, -mount=DIR. flags tells of every long flag whether a
// value follows it. Such a value is left alone whatever it looks like, as is
// all behind "--".
//
// REQUIRES: no short flag takes a value, for its value could be rewritten
func doubleDash(args []string, flags map[string]bool) []string {
	rewritten := slices.Clone(args)
	for i := 0; i < len(args) && args[i] != "--"; i++ {
		name, hasValue := flagName(args[i])
		takesValue, known := flags[name]
		if !known {
			continue
		}
		if !strings.HasPrefix(args[i], "--") {
			rewritten[i] = "-" + args[i]
		}
		if takesValue && !hasValue {
			i++
		}
	}
	return rewritten
}

// flagsFirst puts the sources behind the flags and a "--", wherever they stood:
// the parser ends its list of them at the first flag, and quotes the next one
// whole in its complaint, secrets and all.
func flagsFirst(args []string, flags map[string]bool) []string {
	var front, sources []string
	for i := 0; i < len(args); i++ {
		if args[i] == "--" {
			sources = append(sources, args[i+1:]...)
			break
		}
		if args[i] == "-" || !strings.HasPrefix(args[i], "-") {
			sources = append(sources, args[i])
			continue
		}
		front = append(front, args[i])
		if name, hasValue := flagName(args[i]); flags[name] && !hasValue {
			if i++; i == len(args) {
				return args // the value is missing, as the parser will say
			}
			front = append(front, args[i])
		}
	}
	if len(sources) == 0 {
		return front
	}
	return append(append(front, "--"), sources...)
}

// flagName is what stands between the one or two dashes of arg and its first
// '='; "" where arg has no dash. hasValue tells whether there is an '='.
func flagName(arg string) (name string, hasValue bool) {
	flag, dashed := strings.CutPrefix(arg, "-")
	if !dashed {
		return "", false
	}
	name, _, hasValue = strings.Cut(strings.TrimPrefix(flag, "-"), "=")
	return name, hasValue
}

// longFlags maps every name a flag of k may have behind two dashes, its
// negation and aliases with it, to whether an argument follows it as its value.
func longFlags(k *kong.Kong) map[string]bool {
	flags := make(map[string]bool)
	for _, flag := range k.Model.Flags {
		for _, name := range longNames(flag) {
			flags[name] = !flag.IsBool() && !flag.IsCounter()
		}
	}
	return flags
}

func longNames(flag *kong.Flag) []string {
	names := []string{flag.Name}
	for _, alias := range flag.Aliases {
		// To kong an alias of one letter is a short flag.
		if utf8.RuneCountInString(alias) > 1 {
			names = append(names, alias)
		}
	}
	switch negation := flag.Tag.Negatable; negation {
	case "":
	case "_": // kong's mark for the negation without a name of its own
		names = append(names, "no-"+flag.Name)
	default:
		names = append(names, negation)
	}
	return names
}
