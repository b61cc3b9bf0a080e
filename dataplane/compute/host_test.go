package compute

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"replug/directory/vnet"
)

// TestMain runs the tests in namespaces of their own: network for taps, mount for a
// file system that can be filled, and pid, so that no QEMU outlives them.
func TestMain(m *testing.M) {
	const inside = "REPLUG_COMPUTE_TEST_INSIDE"
	if os.Getenv(inside) != "" {
		if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
			fmt.Fprintf(os.Stderr, "mount proc: %v\n", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "tests in namespaces (needs root): %v\n", err)
		os.Exit(1)
	}
}

// A host is a driver with an image repository, and what its machines have said.
type host struct {
	t     *testing.T
	c     Config
	q     *QEMU
	exits chan Exit
}

const enough = 20 * time.Second // for what takes less than one on an idle machine

// newHost has three images: "talks" says hello on the serial port and halts, "dies"
// ends its QEMU (with -no-reboot) as soon as it runs, "babbles" says x for ever.
func newHost(t *testing.T, change ...func(*Config)) *host {
	t.Helper()
	h := &host{t: t, exits: make(chan Exit, 99)}
	h.c = Config{Dir: t.TempDir(), Images: t.TempDir(), Accel: accelTCG, CPU: "qemu64", ExtraArgs: []string{"-no-reboot"},
		Grace: 300 * time.Millisecond, Open: openMonitor, OnExit: func(e Exit) { h.exits <- e }}
	for _, f := range change {
		f(&h.c)
	}
	for name, code := range map[string][]byte{"talks": hello("hello from the disk\r\n"), "dies": tripleFault, "babbles": babble} {
		dir := filepath.Join(h.c.Images, name)
		check(t, os.MkdirAll(dir, 0o755))
		raw := filepath.Join(t.TempDir(), "raw")
		check(t, os.WriteFile(raw, bootSector(code), 0o644))
		check(t, os.Truncate(raw, 1<<20)) // SeaBIOS boots no disk of one sector
		out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, filepath.Join(dir, "disk.qcow2")).CombinedOutput()
		if err != nil {
			t.Fatalf("qemu-img: %v\n%s (needs qemu-utils)", err, out)
		}
	}
	h.open()
	t.Cleanup(func() {
		states, err := h.q.List(context.Background())
		check(t, err)
		for _, s := range states {
			check(t, h.q.Delete(context.Background(), s.ID))
		}
		check(t, h.q.Close())
		goleak.VerifyNone(t)
	})
	return h
}

// open starts the driver, as the agent's start does.
func (h *host) open() {
	h.t.Helper()
	var err error
	h.q, err = New(h.t.Context(), h.c)
	check(h.t, err)
}

// tap makes a tap that goes with the test.
func (h *host) tap(name string) NIC {
	h.t.Helper()
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP, Flags: unix.IFF_VNET_HDR}
	check(h.t, netlink.LinkAdd(tap))
	h.t.Cleanup(func() { netlink.LinkDel(tap) })
	return NIC{Tap: name, MAC: vnet.PortMAC(0x1a2b3c4d), MTU: 1432}
}

// said waits until the console has s.
func (h *host) said(state State, s string) {
	h.t.Helper()
	deadline := time.Now().Add(enough)
	for {
		b, _ := os.ReadFile(state.Console)
		if strings.Contains(string(b), s) {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("console of %s: %q, want %q", state.ID, b, s)
		}
		time.Sleep(10 * time.Millisecond) // a file that a process writes has no other event
	}
}

func (h *host) exit() Exit {
	h.t.Helper()
	select {
	case e := <-h.exits:
		return e
	case <-time.After(enough):
		h.t.Fatal("no exit was told")
		return Exit{}
	}
}

func spec(id, image string) vnet.Machine {
	return vnet.Machine{ID: id, UUID: "3f8a2b1c-5d4e-4f60-9a7b-8c9d0e1f2a3b", CPUs: 1, Memory: 32, Image: image, Power: vnet.PowerOn}
}

// bootSector makes a disk of 512 bytes that a BIOS boots.
func bootSector(code []byte) []byte {
	b := make([]byte, 512)
	copy(b, code)
	b[510], b[511] = 0x55, 0xaa
	return b
}

// hello is 8086 code at 0x7c00 that writes s to the first serial port and halts.
func hello(s string) []byte {
	code := []byte{0xfa, 0x31, 0xc0, 0x8e, 0xd8, // cli; xor ax,ax; mov ds,ax
		0xbe, 0x16, 0x7c, 0xba, 0xf8, 0x03, // mov si,0x7c16; mov dx,0x3f8
		0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, // lodsb; test al,al; jz end; out dx,al; jmp lodsb
		0xf4, 0xeb, 0xfd} // end: hlt; jmp end
	return append(append(code, s...), 0)
}

// babble is mov dx,0x3f8; mov al,'x'; out dx,al; jmp out.
var babble = []byte{0xba, 0xf8, 0x03, 0xb0, 'x', 0xee, 0xeb, 0xfd}

// tripleFault loads an empty interrupt table and interrupts: the CPU gives up.
var tripleFault = []byte{0x31, 0xc0, 0x8e, 0xd8, 0x0f, 0x01, 0x1e, 0x0c, 0x7c, 0x0f, 0x0b, 0x90, 0, 0, 0, 0, 0, 0}

// monitor is the least of a QMP client.
type monitor struct {
	conn net.Conn
	in   *bufio.Scanner
}

func openMonitor(ctx context.Context, socket string) (Monitor, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	m := &monitor{conn, bufio.NewScanner(conn)}
	if d, ok := ctx.Deadline(); ok {
		conn.SetDeadline(d)
	}
	if !m.in.Scan() {
		conn.Close()
		return nil, errors.New("no greeting")
	}
	if _, err := m.ask("qmp_capabilities"); err != nil {
		conn.Close()
		return nil, err
	}
	return m, nil
}

func (m *monitor) ask(command string) (string, error) {
	return m.send(fmt.Sprintf(`{"execute":%q}`, command))
}

func (m *monitor) send(line string) (string, error) {
	fmt.Fprint(m.conn, line)
	for m.in.Scan() {
		var a struct {
			Return *reply
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(m.in.Bytes(), &a); err != nil {
			return "", err
		}
		if a.Error != nil {
			return "", errors.New(a.Error.Desc)
		}
		if a.Return != nil {
			return a.Return.Status, nil
		}
	}
	return "", errors.New("monitor is gone")
}

// A reply is a status, or what the monitor for people says.
type reply struct{ Status string }

func (r *reply) UnmarshalJSON(b []byte) error {
	if b[0] == '"' {
		return json.Unmarshal(b, &r.Status)
	}
	type status reply
	return json.Unmarshal(b, (*status)(r))
}

func (m *monitor) human(line string) error {
	said, err := m.send(fmt.Sprintf(`{"execute":"human-monitor-command","arguments":{"command-line":%q}}`, line))
	if err == nil && strings.TrimSpace(said) != "" {
		err = errors.New(said)
	}
	return err
}

func (m *monitor) Status(context.Context) (string, error) { return m.ask("query-status") }
func (m *monitor) Powerdown(context.Context) error {
	_, err := m.ask("system_powerdown")
	return err
}
func (m *monitor) Stop(context.Context) error                { _, err := m.ask("stop"); return err }
func (m *monitor) Cont(context.Context) error                { _, err := m.ask("cont"); return err }
func (m *monitor) Save(_ context.Context, name string) error { return m.human("savevm " + name) }
func (m *monitor) Drop(_ context.Context, name string) error { return m.human("delvm " + name) }
func (m *monitor) Quit(context.Context) error                { _, err := m.ask("quit"); return err }
func (m *monitor) Close() error                              { return m.conn.Close() }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
