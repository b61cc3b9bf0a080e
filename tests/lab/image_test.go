package lab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"replug/tests/lab"
)

// bootCPU is what a boot of the small guest may use, emulated, if it has a CPU to itself.
// How long it takes is up to the machine: in 8 to 23 s it used 4.9 to 5.7 s. The guest's
// clock ticks meanwhile, which cost it 8 s more when it had to share for 130 s.
func bootCPU(took time.Duration) time.Duration { return 12*time.Second + took/4 }

var vmMAC = net.HardwareAddr{0x02, 0x52, 0x7b, 0x6a, 0x59, 0x48}

// TestVM boots the small guest once and tries all that a VM is for.
func TestVM(t *testing.T) {
	ctx := within(t, 5*time.Minute) // a cold cache fetches a kernel
	image, err := lab.BuildGuest(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if again, err := lab.BuildGuest(ctx, ""); err != nil || again != image {
		t.Errorf("the second build = %s, %v, want %s", again, err, image)
	}
	t.Logf("warm build: %s", time.Since(start))
	accel, err := lab.Accel(ctx, image)
	if err != nil {
		t.Fatal(err)
	}

	start = time.Now()
	vm, err := shared.BootVM(ctx, shared.Host(2), lab.VMConfig{Name: "small", Image: image, MAC: vmMAC})
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	t.Cleanup(func() {
		if err := vm.Stop(context.Background()); err != nil && !stopped {
			t.Error(err)
		}
	})
	boot, err := vm.Ready(ctx)
	if err != nil {
		t.Fatal(err)
	}
	took, used := time.Since(start), cpu(t, vm.Process().PID())
	t.Logf("booted under %s in %s, with %s of a CPU", accel, took, used)
	if most := bootCPU(took); used > most {
		t.Errorf("the guest took %s of a CPU to boot in %s, want %s at most", used, took, most)
	}
	if mine, _ := os.ReadFile("/proc/sys/kernel/random/boot_id"); len(boot) != 36 || boot == strings.TrimSpace(string(mine)) {
		t.Errorf("boot id %q: this machine's, or none", boot)
	}

	t.Run("devices", func(t *testing.T) { testVMDevices(t, vm) })
	t.Run("exec", func(t *testing.T) { testExec(t, vm) })
	t.Run("network", func(t *testing.T) { testVMNetwork(t, vm) })
	t.Run("residue", func(t *testing.T) {
		left := strings.Join(lab.Residue("labtest"), "\n")
		if want := fmt.Sprintf("process %d (in namespace rp-labtest-h2): qemu-system-x86_64", vm.Process().PID()); !strings.Contains(left, want) {
			t.Errorf("Residue lacks %q:\n%s", want, left)
		}
	})
	stopped = true
	if err := vm.Stop(ctx); err != nil || vm.Process().Alive() {
		t.Errorf("Stop = %v", err)
	}
}

// cpu is what a process has used.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const user, system, tick = 11, 12, 10 * time.Millisecond // behind the name; USER_HZ is 100
	ticks := 0
	for _, f := range []int{user, system} {
		n, err := strconv.Atoi(fields[f])
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * tick
}

func testVMDevices(t *testing.T, vm *lab.VM) {
	for script, want := range map[string]string{
		"cat /sys/class/net/eth0/address": vmMAC.String() + "\n",
		"cat /sys/class/net/eth0/mtu":     "1500\n",
		"cat /sys/block/vda/size":         "32768\n", // 16 MiB
		"hostname; cat /etc/hostname":     "placeholder\nplaceholder\n",
		"ls /usr/share/zoneinfo/Asia":     "Tokyo\n",
		"id -u; pwd; test -w /tmp":        "0\n/\n",
	} {
		if out, err := vm.Exec(within(t, time.Minute), script); err != nil || out != want {
			t.Errorf("%s = %q, %v, want %q", script, out, err, want)
		}
	}
}

func testExec(t *testing.T, vm *lab.VM) {
	ctx := within(t, 3*time.Minute)
	var failed *lab.GuestError
	if out, err := vm.Exec(ctx, "echo 'said \"$HOME\"'; echo oops >&2; exit 37"); !errors.As(err, &failed) || failed.Status != 37 || out != "said \"$HOME\"\noops\n" {
		t.Errorf("a script that fails = %q, %v", out, err)
	}
	if out, err := vm.Exec(ctx, "true"); err != nil || out != "" {
		t.Errorf("a script that says nothing = %q, %v", out, err)
	}
	// Text that looks like an answer, a long output, bytes that are no text.
	if out, err := vm.Exec(ctx, "echo RPX abc 0 Zm9v; seq 1 20000"); err != nil || strings.Count(out, "\n") != 20001 || !strings.HasSuffix(out, "\n20000\n") {
		t.Errorf("a long output has %d lines, %v", strings.Count(out, "\n"), err)
	}
	if out, err := vm.Exec(ctx, `printf '\377\000\r\n\003'`); err != nil || out != "\xff\x00\r\n\x03" {
		t.Errorf("bytes = %q, %v", out, err)
	}
	// Noise on the line before, between and after.
	if out, err := vm.Exec(ctx, "echo noise >/dev/ttyS1; echo RPA no one >/dev/ttyS1; echo clean"); err != nil || out != "clean\n" {
		t.Errorf("with noise = %q, %v", out, err)
	}
	// A script that hangs ends for the caller in time and holds up nobody.
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := vm.Exec(short, "sleep 1000"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a script that hangs = %v", err)
	}
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			if out, err := vm.Exec(ctx, fmt.Sprintf("echo %d", 1000+i)); err != nil || out != fmt.Sprintf("%d\n", 1000+i) {
				t.Errorf("call %d of several at once = %q, %v", i, out, err)
			}
		})
	}
	all.Wait()
}

// The NIC carries frames, its link is bounced by the monitor, and it is the
// guest that sees it.
func testVMNetwork(t *testing.T, vm *lab.VM) {
	ctx := within(t, 3*time.Minute)
	// Without an agent the image has a DHCP client, which would flush the address.
	if _, err := vm.Exec(ctx, "kill $(cat /run/udhcpc.pid); ip addr flush dev eth0; ip addr add 10.23.48.91/24 dev eth0; ip link set eth0 up"); err != nil {
		t.Fatal(err)
	}
	addHostAddr(t, vm.On(), vm.Tap(), "10.23.48.67/24")
	if err := reaches(ctx, vm.On(), "10.23.48.91"); err != nil {
		t.Error(err)
	}
	m := dial(t, vm.Monitor())
	m.ask(`{"execute":"qmp_capabilities"}`)
	for _, c := range []struct{ up, carrier string }{{"false", "0\n"}, {"true", "1\n"}} {
		if _, class := m.ask(`{"execute":"set_link","arguments":{"name":"nic0","up":` + c.up + `}}`); class != "" {
			t.Fatalf("set_link: %s", class)
		}
		err := lab.Until(ctx, "the guest to see its link", func() error {
			if out, err := vm.Exec(ctx, "cat /sys/class/net/eth0/carrier"); err != nil || out != c.carrier {
				return fmt.Errorf("carrier %q, %v", out, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := reaches(ctx, vm.On(), "10.23.48.91"); err != nil {
		t.Error(err)
	}
}

// The image is made of what goes in: another agent makes another image, and a
// VM of it runs that agent.
func TestImageHoldsTheAgent(t *testing.T) {
	ctx := within(t, 5*time.Minute)
	agent := filepath.Join(t.TempDir(), "agent")
	script := "#!/bin/sh\necho agent was started with $*\nexec sleep 1000\n"
	if err := os.WriteFile(agent, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	plain, err := lab.BuildGuest(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	image, err := lab.BuildGuest(ctx, agent)
	if err != nil || image == plain {
		t.Fatalf("image with an agent = %s, %v; without: %s", image, err, plain)
	}
	t.Cleanup(func() { os.RemoveAll(image) })
	vm, err := shared.BootVM(ctx, shared.Host(1), lab.VMConfig{Name: "agent", Image: image, MAC: vmMAC})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Stop(context.Background()) })
	err = lab.Until(ctx, "the agent's word", func() error {
		if said, _ := os.ReadFile(vm.Console()); !bytes.Contains(said, []byte("agent was started with --dhcp own --iface eth0")) {
			return fmt.Errorf("console: %s", said)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestInstallImage(t *testing.T) {
	image, repository := t.TempDir(), filepath.Join(t.TempDir(), "images")
	if err := os.WriteFile(filepath.Join(image, "cmdline"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := lab.InstallImage(image, repository, "small"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(repository, "small/cmdline")); err != nil {
		t.Error(err)
	}
}
