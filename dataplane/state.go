package dataplane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another agent works on the same state.
var ErrLocked = errors.New("another agent works here")

// A stateDir is the agent's directory, held by one agent at a time.
type stateDir struct {
	dir  string
	lock *os.File
}

// openState makes the directory and takes its lock. The lock ends with the
// process, however it ends.
func openState(dir string) (*stateDir, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid, _ := os.ReadFile(path)
		f.Close()
		return nil, fmt.Errorf("%w: process %s holds %s: stop it first, or give this one its own --state-dir",
			ErrLocked, strings.TrimSpace(string(pid)), path)
	}
	if err := errors.Join(f.Truncate(0), write(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		f.Close()
		return nil, fmt.Errorf("write the lock: %w", err)
	}
	return &stateDir{dir, f}, nil
}

func write(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func (s *stateDir) close() error { return s.lock.Close() }

// session returns a number larger than that of any session before, also when
// the clock was set back in between, as by a loss of power.
func (s *stateDir) session() (uint64, error) {
	path := filepath.Join(s.dir, "session")
	var last uint64
	if b, err := os.ReadFile(path); err == nil {
		last, _ = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	}
	n := max(uint64(time.Now().UnixNano()), last+1)
	if err := s.keep(path, strconv.FormatUint(n, 10)+"\n"); err != nil {
		return 0, fmt.Errorf("write the session number: %w", err)
	}
	return n, nil
}

// keep replaces a file, whole and for good.
func (s *stateDir) keep(path, content string) error {
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f, content), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
