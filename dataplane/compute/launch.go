package compute

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"replug/directory/vnet"
)

// Files of a machine's directory.
const (
	recordFile    = "machine.json"
	pidFile       = "qemu.pid" // QEMU writes it, and locks it while it runs
	logFile       = "qemu.log"
	consoleFile   = "console.log"
	monitorSocket = "qmp.sock"
	powerSocket   = "power.sock"
	channelSocket = "guest.sock"
)

// A record is what was asked for and which process runs it.
type record struct {
	Machine vnet.Machine `json:"machine"`
	NIC     NIC          `json:"nic"`
	Image   *image       `json:"image,omitempty"` // as it was at the machine's first start
	Accel   string       `json:"accel"`
	Format  string       `json:"format,omitempty"` // who can read its state: see [QEMU.format]
	PID     int          `json:"pid,omitempty"`
	Start   uint64       `json:"start,omitempty"` // clock ticks after the host's boot
	Boot    string       `json:"boot,omitempty"`  // the host's boot id
}

func readRecord(dir string) (record, error) {
	var r record
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return record{}, fmt.Errorf("%s of the machine: %w", filepath.Join(dir, recordFile), err)
	}
	return r, nil
}

// find returns the process that runs a machine, or nil. A number in a file proves
// nothing: the process must have been started for this very directory, and if the
// record names it, at that time. Its monitor is asked by whoever relies on it.
func find(dir string) *process {
	b, err := os.ReadFile(filepath.Join(dir, pidFile))
	if err != nil {
		return nil
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return nil
	}
	p, err := openProcess(pid, "-pidfile", filepath.Join(dir, pidFile))
	if err != nil {
		return nil
	}
	// The agent may have died before it could write the record: then only the
	// command line speaks.
	if r, err := readRecord(dir); err == nil && r.PID == pid && r.Boot == bootID() && r.Start != p.start {
		p.fd.Close()
		return nil
	}
	return p
}

// launch runs QEMU in a session of its own and remembers it.
func (q *QEMU) launch(ctx context.Context, l *launch) (*process, error) {
	r := record{Machine: l.machine, NIC: l.nic, Image: &l.image, Accel: l.accel, Format: q.format()}
	// Before the guest runs: with the record, all that was made for it.
	if err := errors.Join(r.write(l.dir), syncDir(l.dir)); err != nil {
		return nil, err
	}
	if err := q.hand(ctx, l); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(l.dir, logFile))
	if err != nil {
		return nil, full(err)
	}
	defer log.Close()
	cmd := exec.Command(q.c.QEMU, q.c.args(l)...) // not of ctx: it outlives it
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, l.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	for _, name := range []string{monitorSocket, powerSocket, channelSocket} {
		f, err := listen(filepath.Join(l.dir, name))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBoot, err)
	}
	p, err := openProcess(cmd.Process.Pid)
	if err != nil {
		_, _ = cmd.Process.Wait()
		return nil, fmt.Errorf("%w: %w: %s", ErrBoot, err, lastWords(l.dir))
	}
	_ = cmd.Process.Release()
	r.PID, r.Start, r.Boot = p.pid, p.start, bootID()
	if err := r.write(l.dir); err != nil {
		_ = p.kill()
		p.await()
		p.fd.Close()
		return nil, err
	}
	return p, nil
}

// listen makes a socket that QEMU will serve. It is there before QEMU is, so a
// client waits for the greeting and not for the file.
func listen(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("make %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", path, err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}

// hand prepares what is the user's that QEMU runs as.
func (q *QEMU) hand(ctx context.Context, l *launch) error {
	console := filepath.Join(l.dir, consoleFile)
	if err := os.Rename(console, console+".old"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep the last console: %w", err)
	}
	if q.c.RunAs == "" {
		return nil
	}
	help, err := exec.CommandContext(ctx, q.c.QEMU, "-help").Output()
	if err != nil {
		return fmt.Errorf("ask QEMU how to run as %s: %w", q.c.RunAs, err)
	}
	l.runWith = bytes.Contains(help, []byte("-run-with")) && bytes.Contains(help, []byte("user="))
	u, err := user.Lookup(q.c.RunAs)
	if err != nil {
		return fmt.Errorf("%w: run as %s: %w", ErrSpec, q.c.RunAs, err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2, os.Lchown(l.dir, uid, gid)); err != nil {
		return fmt.Errorf("give %s to %s: %w", l.dir, q.c.RunAs, err)
	}
	for _, d := range disks(&l.machine, l.image) {
		if err := os.Lchown(diskFile(l.dir, d), uid, gid); err != nil {
			return fmt.Errorf("give disk %s to %s: %w", d.ID, q.c.RunAs, err)
		}
	}
	return nil
}

func (r *record) write(dir string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write %s: %w", recordFile, err)
	}
	return replace(filepath.Join(dir, recordFile), b)
}

// full names a full disk as such.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w: %w", ErrDiskFull, err)
	}
	return err
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // always there; "" never matches a record
	return strings.TrimSpace(string(b))
}

// lastWords is the end of what QEMU said.
func lastWords(dir string) string {
	b, _ := os.ReadFile(filepath.Join(dir, logFile))
	b = bytes.TrimSpace(b)
	return string(b[max(0, len(b)-500):])
}
