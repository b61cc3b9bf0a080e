package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"replug/tests/lab/tap"
)

// Names of the NIC and of its back end at a VM's monitor.
const (
	NICName = "nic0"
	NetName = "net0"
)

// VMConfig says what machine to boot.
type VMConfig struct {
	Name   string           // unique in the lab; at most 11 bytes for the default tap
	Image  string           // directory that BuildGuest made
	MAC    net.HardwareAddr // of its NIC
	MTU    int              // of its NIC and of the host's tap; 0: what VXLAN over the underlay leaves
	Tap    string           // the host's device; "": tap-<name>
	Memory int              // MiB; 0: 128
	Accel  string           // KVM or TCG; "": what Accel finds
	Extra  []string         // arguments for QEMU on top
}

// A VM is a machine that the lab runs itself, for whoever attaches or adopts it:
// QEMU in the host's namespace, with virtio-net on a tap, a disk, a QMP socket, a
// console log and an exec channel. VMs of replug-host are made by replug-host.
type VM struct {
	c    VMConfig
	host *Node
	dir  string
	qemu *Proc
}

// BootVM makes the tap and the disk, and starts the machine. It doesn't wait for
// the guest: see Ready.
func (l *Lab) BootVM(ctx context.Context, host *Node, c VMConfig) (*VM, error) {
	if c.MTU == 0 {
		c.MTU = l.GuestMTU()
	}
	if c.Tap == "" {
		c.Tap = "tap-" + c.Name
	}
	if c.Memory == 0 {
		c.Memory = 128
	}
	if c.Name == "" || len(c.Tap) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("VM %q: a device's name (%s) has at most %d bytes", c.Name, c.Tap, unix.IFNAMSIZ-1)
	}
	if c.Accel == "" {
		var err error
		if c.Accel, err = Accel(ctx, c.Image); err != nil {
			return nil, err
		}
	}
	vm := &VM{c: c, host: host, dir: filepath.Join(host.Dir(), "labvm-"+c.Name)}
	if err := vm.boot(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("VM %s: %w", c.Name, err), vm.Stop(context.WithoutCancel(ctx)))
	}
	return vm, nil
}

func (vm *VM) boot(ctx context.Context) error {
	if err := os.Mkdir(vm.dir, 0o700); err != nil {
		return err
	}
	fd, err := tap.Open(vm.host.NetNS(), vm.c.Tap, tap.Options{VNetHdr: true, Persist: true, MTU: vm.c.MTU, Up: true})
	if err != nil {
		return err
	}
	unix.Close(fd) // QEMU opens it again
	disk := filepath.Join(vm.dir, "disk.qcow2")
	if _, err := output(ctx, vm.dir, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2",
		"-b", filepath.Join(vm.c.Image, "disk.qcow2"), disk); err != nil {
		return err
	}
	args, err := machine(vm.c.Image, "amd64", vm.c.Accel, vm.c.Memory)
	if err != nil {
		return err
	}
	args = append(args, "-name", vm.c.Name,
		"-drive", "id=drive0,if=none,format=qcow2,file="+disk, "-device", "virtio-blk-pci,drive=drive0",
		"-netdev", "tap,id="+NetName+",ifname="+vm.c.Tap+",script=no,downscript=no,vhost=off",
		"-device", fmt.Sprintf("virtio-net-pci,id=%s,netdev=%s,mac=%s,host_mtu=%d,romfile=", NICName, NetName, vm.c.MAC, vm.c.MTU),
		"-serial", "file:"+vm.Console(),
		"-serial", "unix:"+vm.ExecSocket()+",server=on,wait=off",
		"-qmp", "unix:"+vm.Monitor()+",server=on,wait=off")
	vm.qemu, err = vm.host.Start(ctx, Cmd{Name: "labvm-" + vm.c.Name, Args: append(args, vm.c.Extra...), Dir: vm.dir})
	if err != nil {
		return err
	}
	return Until(ctx, "QEMU's sockets", func() error {
		if !vm.qemu.Alive() {
			said, _ := os.ReadFile(vm.qemu.Log())
			return fmt.Errorf("QEMU ended: %s", tail(said))
		}
		_, err1 := os.Stat(vm.Monitor())
		_, err2 := os.Stat(vm.ExecSocket())
		return errors.Join(err1, err2)
	})
}

// Monitor returns the path of the VM's QMP socket.
func (vm *VM) Monitor() string { return filepath.Join(vm.dir, "qmp.sock") }

// ExecSocket returns the path of the VM's exec channel, for GuestExec.
func (vm *VM) ExecSocket() string { return filepath.Join(vm.dir, "exec.sock") }

// Console returns the file that holds what the guest's console says.
func (vm *VM) Console() string { return filepath.Join(vm.dir, "console.log") }

// Tap returns the name of the VM's device in the host's namespace.
func (vm *VM) Tap() string { return vm.c.Tap }

// On returns the host.
func (vm *VM) On() *Node { return vm.host }

// Process returns the QEMU process.
func (vm *VM) Process() *Proc { return vm.qemu }

// Exec runs a shell script inside the guest, see [GuestExec].
func (vm *VM) Exec(ctx context.Context, script string) (string, error) {
	return GuestExec(ctx, vm.ExecSocket(), script)
}

// Ready waits for the guest to have booted and returns the boot id that its
// kernel has drawn.
func (vm *VM) Ready(ctx context.Context) (string, error) {
	out, err := vm.Exec(ctx, "cat /proc/sys/kernel/random/boot_id")
	if err != nil {
		said, _ := os.ReadFile(vm.Console())
		return "", fmt.Errorf("VM %s: %w: console: %s", vm.c.Name, err, tail(bytes.ReplaceAll(said, []byte("\r"), nil)))
	}
	return strings.TrimSpace(out), nil
}

// Stop ends the machine and removes its tap and its files.
func (vm *VM) Stop(ctx context.Context) error {
	var errs []error
	if vm.qemu != nil {
		errs = append(errs, vm.qemu.Stop(ctx))
	}
	err := vm.host.Netlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(vm.c.Tap)
		var none netlink.LinkNotFoundError
		if errors.As(err, &none) {
			return nil
		}
		if err != nil {
			return err
		}
		return h.LinkDel(link)
	})
	return errors.Join(append(errs, err, os.RemoveAll(vm.dir))...)
}
