// command_read_linux.go knows how a program finds itself on Linux. It opens
// nothing.

package main

// ownProgram is a path that runs this very program, also when its file has been
// replaced or removed since it was started (proc_pid_exe(5)).
func ownProgram() (string, error) { return "/proc/self/exe", nil }
