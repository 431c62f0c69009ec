// store_file.go makes temporary files that no crash can leave behind.

package main

import "os"

// createNamed makes a temporary file, 0600, in dir and unlinks it at once: from
// then on its space is given back when the last descriptor closes, however the
// process ends (unlink(2)).
func createNamed(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "fsmount-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
