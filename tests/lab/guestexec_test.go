package lab

import (
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The socket of a VM that has just begun is bound, and nobody listens to it yet.
func TestDialBeforeListen(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "exec.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: sock}); err != nil {
		t.Fatal(err)
	}
	listened := make(chan error, 1)
	time.AfterFunc(50*time.Millisecond, func() { listened <- unix.Listen(fd, 1) })
	conn, err := dialQueued(t.Context(), sock)
	if err != nil {
		t.Fatalf("a VM that has just begun: %v", err)
	}
	conn.Close()
	if err := <-listened; err != nil {
		t.Fatal(err)
	}
}
