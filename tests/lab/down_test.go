package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"replug/tests/lab"
)

// Each kind of leak is planted, seen, and gone after Down.
func TestResidueFindsWhatIsPlanted(t *testing.T) {
	ctx := within(t, time.Minute)
	l, err := lab.Up(ctx, lab.Config{Name: "lableak", Hosts: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Down(context.Background(), "lableak") })
	h := l.Host(1)
	plant(ctx, t, h)
	left := strings.Join(lab.Residue("lableak"), "\n")
	for _, want := range []string{
		"in namespace rp-lableak-h1): busybox sleep 301", "environment says REPLUG_LAB=lableak): busybox sleep 302",
		"namespace rp-lableak-r", "mount " + h.BPF(), "mount " + h.Dir() + "/vm", "device rp-lableak-x", "directory ",
	} {
		if !strings.Contains(left, want) {
			t.Errorf("Residue lacks %q:\n%s", want, left)
		}
	}
	if all := strings.Join(lab.Residue(""), "\n"); strings.Contains(all, "lableak") {
		t.Errorf("labs that are up are no residue: %s", all)
	}
	if err := l.Down(ctx); err != nil {
		t.Fatal(err)
	}
	if left := lab.Residue("lableak"); len(left) != 1 || left[0] != "device rp-lableak-x" {
		t.Errorf("after Down: %q, want the planted device only", left)
	}
}

// plant leaks what a lab's host can leak: processes without a parent, inside and
// outside of its namespace, a device, a mount.
func plant(ctx context.Context, t *testing.T, h *lab.Node) {
	t.Helper()
	// A grandchild in a session of its own whose parent is gone, as a QEMU of a
	// dead agent.
	if _, err := h.Run(ctx, "busybox", "sh", "-c", "busybox setsid busybox sleep 301 >/dev/null 2>&1 & exit 0"); err != nil {
		t.Fatal(err)
	}
	// A child that left the namespace for the machine's own.
	outside := exec.Command("busybox", "sleep", "302")
	outside.Env = append(os.Environ(), "REPLUG_LAB=lableak")
	if err := outside.Start(); err != nil {
		t.Fatal(err)
	}
	go outside.Wait()
	err := lab.Until(ctx, "the leaks to run", func() error {
		if left := strings.Join(lab.Residue("lableak"), " "); strings.Count(left, ": busybox sleep 30") != 2 {
			return errors.New(left)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	dev := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "rp-lableak-x"}}
	if err := netlink.LinkAdd(dev); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.LinkDel(dev) })
	if err := unix.Mount("tmp", mkdir(t, filepath.Join(h.Dir(), "vm")), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A lab whose owner dies by kill -9 is taken down by its reaper; one without a
// reaper by the next Up of its name.
func TestLabOfADeadOwner(t *testing.T) {
	for _, c := range []struct {
		name    string
		reaped  bool
		replace bool
	}{{"labreap", true, false}, {"labstale", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			ctx := within(t, time.Minute)
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=TestLabOfADeadOwner")
			cmd.Env = append(os.Environ(), "LAB_TEST_OWNER="+c.name)
			if c.reaped {
				cmd.Env = append(cmd.Env, "LAB_TEST_HELPER="+helper[0])
			}
			t.Cleanup(func() { lab.Down(context.Background(), c.name) })
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "the lab stands") {
				t.Fatalf("owner: %v: %s", err, out)
			}
			if c.replace {
				l, err := lab.Up(ctx, lab.Config{Name: c.name, Hosts: 1})
				if err != nil {
					t.Fatal(err)
				}
				if err := l.Down(ctx); err != nil {
					t.Fatal(err)
				}
			}
			err := lab.Until(ctx, "the lab to be gone", func() error {
				if left := lab.Residue(c.name); len(left) > 0 {
					return fmt.Errorf("left: %q", left)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// own is the owner process of TestLabOfADeadOwner.
func own() {
	c := lab.Config{Name: os.Getenv("LAB_TEST_OWNER"), Hosts: 1}
	if h := os.Getenv("LAB_TEST_HELPER"); h != "" {
		c.Helper = []string{h, "helper"}
	}
	l, err := lab.Up(context.Background(), c)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if _, err := l.Host(1).Start(context.Background(), lab.Cmd{Args: []string{"busybox", "sleep", "303"}}); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("the lab stands")
	unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}
