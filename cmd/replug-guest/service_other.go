//go:build !windows

package main

// serve is for Windows: elsewhere a service is a program like any other.
func serve() bool { return false }
