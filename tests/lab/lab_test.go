package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"replug/tests/lab"
)

// The lab that most tests of this package share, and what built it.
var (
	shared *lab.Lab
	helper []string
)

func TestMain(m *testing.M) {
	if os.Getenv("LAB_TEST_OWNER") != "" {
		own()
	}
	if err := lab.Check(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "replug-lab-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	if helper, err = lab.BuildHelper(ctx, dir); err != nil {
		return fail(err)
	}
	shared, err = lab.Up(ctx, lab.Config{Name: "labtest", Hosts: 2, Helper: helper})
	if err != nil {
		return fail(err)
	}
	code := m.Run()
	if err := shared.Down(context.Background()); err != nil {
		return fail(err)
	}
	if left := lab.Residue("labtest"); len(left) > 0 {
		return fail(fmt.Errorf("left behind: %q", left))
	}
	if err := goleak.Find(); err != nil {
		return fail(err)
	}
	return code
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// within bounds a test's waits.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// ping is one question, for what must not be answered.
func ping(ctx context.Context, n *lab.Node, to string) error {
	_, err := n.Run(ctx, "busybox", "ping", "-c", "1", "-W", "1", to)
	return err
}

// reaches asks until there is an answer.
func reaches(ctx context.Context, n *lab.Node, to string) error {
	return lab.Until(ctx, "an answer from "+to, func() error { return ping(ctx, n, to) })
}

func TestUnderlayIsRouted(t *testing.T) {
	ctx := within(t, time.Minute)
	h1, h2 := shared.Host(1), shared.Host(2)
	for _, c := range []struct {
		from *lab.Node
		to   string
	}{
		{h1, shared.HostAddr(2).String()}, {h2, shared.ServerAddr().String()},
		{shared.Server(), shared.HostAddr(1).String()},
	} {
		if err := reaches(ctx, c.from, c.to); err != nil {
			t.Errorf("%s reaches %s: %v", c.from.Name, c.to, err)
		}
	}
	// A PA of host 2 goes to host 2 and ends there, as no address of it.
	got, err := counted(h2, "up0", func() error {
		if ping(ctx, h1, "100.64.2.77") == nil {
			t.Error("a provider address answered: it must not be local to the host")
		}
		return nil
	})
	if err != nil || got == 0 {
		t.Errorf("host 2 received %d frames for its provider prefix (%v), want some", got, err)
	}
	for _, n := range append(shared.Hosts(), shared.Server(), shared.Router()) {
		err := n.Netlink(func(h *netlink.Handle) error {
			addrs, err := h.AddrList(nil, netlink.FAMILY_V6)
			if len(addrs) > 0 {
				t.Errorf("%s has IPv6 addresses: %v", n.Name, addrs)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// counted returns how many frames a device received while f ran.
func counted(n *lab.Node, dev string, f func() error) (uint64, error) {
	var before, after uint64
	read := func(into *uint64) func(h *netlink.Handle) error {
		return func(h *netlink.Handle) error {
			l, err := h.LinkByName(dev)
			if err == nil {
				*into = l.Attrs().Statistics.RxPackets
			}
			return err
		}
	}
	err := errors.Join(n.Netlink(read(&before)), f(), n.Netlink(read(&after)))
	return after - before, err
}

func TestMTUAndDevices(t *testing.T) {
	for n, h := range shared.Hosts() {
		err := h.Netlink(func(nl *netlink.Handle) error {
			up, err := nl.LinkByName("up0")
			if err != nil {
				return err
			}
			if up.Attrs().MTU != 1550 || up.Attrs().Flags&unix.IFF_UP == 0 {
				t.Errorf("host %d: up0 has MTU %d and flags %s", n+1, up.Attrs().MTU, up.Attrs().Flags)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(h.BPF(), &fs); err != nil || fs.Type != unix.BPF_FS_MAGIC {
			t.Errorf("host %d: %s is no bpf file system (%v)", n+1, h.BPF(), err)
		}
	}
}

func TestSecondLabOfOneNameIsRefused(t *testing.T) {
	_, err := lab.Up(within(t, time.Minute), lab.Config{Name: "labtest", Hosts: 1})
	if !errors.Is(err, lab.ErrIsUp) {
		t.Fatalf("Up = %v, want ErrIsUp", err)
	}
	if err := reaches(within(t, time.Minute), shared.Host(1), shared.ServerAddr().String()); err != nil {
		t.Errorf("the lab that was up suffered: %v", err)
	}
}

func TestBadNames(t *testing.T) {
	for _, name := range []string{"", "Up", "a-b", "../etc", "9lives", "averyverylongname"} {
		if _, err := lab.Up(t.Context(), lab.Config{Name: name, Hosts: 1}); !errors.Is(err, lab.ErrName) {
			t.Errorf("Up(%q) = %v, want ErrName", name, err)
		}
		if err := lab.Down(t.Context(), name); !errors.Is(err, lab.ErrName) {
			t.Errorf("Down(%q) = %v, want ErrName", name, err)
		}
	}
	if _, err := lab.Open("nosuchlab"); !errors.Is(err, lab.ErrNotUp) {
		t.Errorf("Open = %v, want ErrNotUp", err)
	}
}

func TestProcesses(t *testing.T) {
	ctx := within(t, time.Minute)
	h := shared.Host(1)
	p, err := h.Start(ctx, lab.Cmd{Name: "sleeper", Args: []string{"busybox", "sh", "-c", "echo here $REPLUG_NODE; exec sleep 300"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Says(ctx, "here h1\n"); err != nil {
		t.Fatal(err)
	}
	inside, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.PID()))
	mine, _ := os.Readlink("/proc/self/ns/net")
	if inside == mine {
		t.Error("the process runs in this process's namespace")
	}
	other, err := lab.Open("labtest")
	if err != nil {
		t.Fatal(err)
	}
	var found *lab.Proc
	for _, q := range other.Procs() {
		if q.PID() == p.PID() {
			found = q
		}
	}
	if found == nil || found.Name != "sleeper" || !found.Alive() {
		t.Fatalf("Open().Procs() = %v, want the sleeper among them", other.Procs())
	}
	if err := found.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(ctx); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("Wait = %v, want killed", err)
	}
	if err := found.Wait(ctx); err != nil {
		t.Error(err)
	}
	if p.Alive() || found.Alive() {
		t.Error("a dead process is said to be alive")
	}
	if err := p.Kill(); err == nil {
		t.Error("killing a dead process is no error: another one could have been hit")
	}
	if err := p.Says(ctx, "never said"); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("Says of a dead process = %v", err)
	}
}

func TestStopIsBounded(t *testing.T) {
	p, err := shared.Host(1).Start(t.Context(), lab.Cmd{Name: "stubborn", Args: []string{"busybox", "sh", "-c", "trap '' TERM; echo armed; while :; do sleep 1; done"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Says(within(t, time.Minute), "armed"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := p.Stop(ctx); err == nil || p.Alive() {
		t.Errorf("Stop = %v, alive %v; want an error and a dead process", err, p.Alive())
	}
}

func TestRunSaysWhatFailed(t *testing.T) {
	_, err := shared.Host(2).Run(t.Context(), "busybox", "sh", "-c", "echo the reason >&2; exit 7")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("Run = %v, want exit 7 and the reason", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := shared.Host(2).Run(ctx, "busybox", "sh", "-c", "sleep 100; true"); err == nil {
		t.Error("a command that was cut off is no error")
	}
}
