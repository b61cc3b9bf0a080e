// Package compute runs VMs on the host: QEMU processes that outlive the agent,
// each with a directory of its own:
//
//	<dir>/vms/<id>/machine.json   what was asked for, and which process runs it
//	               os.qcow2       overlay of the image's disk
//	               <disk>.qcow2   data disks
//	               vmlinuz, initrd.img  of the image, as they were at the first start
//	               console.log    serial port 0
//	               qmp.sock       monitor, for whoever moves the NIC's link
//	               power.sock     monitor, for this package
//	               guest.sock     second channel to the agent in the guest
//	               saved          is there while the machine's state rests in os.qcow2
//	               qemu.pid, qemu.log
//
// It makes no taps, and knows nothing of networks: a NIC is a tap's name and a MAC.
package compute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"replug/directory/vnet"
)

// Errors of a driver, wrapped with what happened and what to do.
var (
	ErrSpec     = errors.New("the machine can't be like this")
	ErrNoImage  = errors.New("the image is not on this host")
	ErrRecord   = errors.New("what the machine is made of can't be read")
	ErrNoQEMU   = errors.New("QEMU is not on this host")
	ErrDiskFull = errors.New("the disk is full")
	ErrOff      = errors.New("the machine is off")
	ErrBoot     = errors.New("QEMU did not start")
	ErrHung     = errors.New("QEMU runs but its monitor does not answer")
)

// A Driver runs machines. All calls are idempotent and may be made at once.
type Driver interface {
	// Ensure makes the machine run on the NIC. One that runs already is left as
	// it is; a change of its size takes effect at the next start.
	Ensure(ctx context.Context, m vnet.Machine, nic NIC) (State, error)
	// Stop ends the machine and keeps its disks: graceful presses the power
	// button first. One that is off or unknown is no error.
	Stop(ctx context.Context, id string, graceful bool) error
	// Save ends the machine and keeps its state in its disks: its next start goes on
	// where it was, once. One that is saved already is no error.
	Save(ctx context.Context, id string) error
	// Delete ends the machine and removes all it has. An unknown one is no error.
	Delete(ctx context.Context, id string) error
	// List returns every machine of the host, running or not.
	List(ctx context.Context) ([]State, error)
	// State returns one machine; its power is absent if it is unknown.
	State(ctx context.Context, id string) (State, error)
}

// A NIC is the machine's one network card.
type NIC struct {
	Tap string   `json:"tap"`
	MAC vnet.MAC `json:"mac"`
	MTU int      `json:"mtu"` // bytes, what the guest uses from its boot on; 0: not said
}

// NICName and NetName are the NIC's and its back-end's names at the monitor.
// SlotName is that of the slot that it can be pulled out of, where it has one.
const (
	NICName  = "nic0"
	NetName  = "net0"
	SlotName = "slot0"
)

// A State is what the host has of a machine.
type State struct {
	ID      string
	Power   vnet.Power
	PID     int    // while on
	Dir     string // its files
	Monitor string // QMP socket that this package does not use
	Channel string // socket of the port [vnet.ChannelName]
	Console string // file with the output of serial port 0
	Accel   string // "kvm" or "tcg", of the last start
	Saved   bool   // off, and to go on where it was
	Resumed bool   // of Ensure: it went on where it was
	Problem string // what is wrong with its files, if anything
}

// An Exit is the end of a QEMU process.
type Exit struct {
	ID    string
	Asked bool   // by Stop or Delete; otherwise the guest powered off, or QEMU died
	Said  string // QEMU's last words, if any
}

// A Monitor is a connection to a machine's monitor.
type Monitor interface {
	Status(ctx context.Context) (string, error)
	Powerdown(ctx context.Context) error
	Stop(ctx context.Context) error // its CPUs
	Cont(ctx context.Context) error
	Save(ctx context.Context, name string) error
	Drop(ctx context.Context, name string) error
	Quit(ctx context.Context) error
	Close() error
}

// Config is where and how a [QEMU] runs machines.
type Config struct {
	Dir       string        // absolute; machines live in Dir/vms
	Images    string        // image repository: NAME/{vmlinuz,initrd.img,cmdline,disk.qcow2,image.json}
	QEMU      string        // program; default qemu-system-x86_64
	QemuImg   string        // program; default qemu-img
	Machine   string        // QEMU machine type; default q35
	CPU       string        // default: host with KVM, max without
	Accel     string        // kvm, tcg or auto (default): kvm if a boot proves it
	RunAs     string        // user of the QEMU processes; default: the agent's
	ExtraArgs []string      // added to each command line; {dir} and {id} are filled in
	Grace     time.Duration // for a guest to power off; default 30 s
	MinFree   int64         // bytes that must be free to make disks; default 64 MiB

	Open   func(ctx context.Context, socket string) (Monitor, error)
	Probe  func(ctx context.Context, kernel string) error // default [QEMU.ProbeKVM]
	OnExit func(Exit)                                     // may be nil; called from one goroutine a machine
	Log    *slog.Logger
}

// check fills in the defaults and says what is wrong.
func (c *Config) check() error {
	def := func(s *string, to string) {
		if *s == "" {
			*s = to
		}
	}
	def(&c.QEMU, "qemu-system-x86_64")
	def(&c.QemuImg, "qemu-img")
	def(&c.Machine, "q35")
	def(&c.Accel, "auto")
	if c.Grace == 0 {
		c.Grace = 30 * time.Second
	}
	if c.MinFree == 0 {
		c.MinFree = 64 << 20
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.OnExit == nil {
		c.OnExit = func(Exit) {}
	}
	switch {
	case c.Dir == "" || c.Dir[0] != '/' || c.Images == "" || c.Images[0] != '/':
		return fmt.Errorf("directories %q and %q: want absolute ones", c.Dir, c.Images)
	case c.Accel != "auto" && c.Accel != accelKVM && c.Accel != accelTCG:
		return fmt.Errorf("acceleration %q: want auto, kvm or tcg", c.Accel)
	case c.Open == nil:
		return errors.New("no way to open a monitor")
	}
	return nil
}

// word is what names a machine, a disk or an image: safe as a file name and in
// QEMU's options.
var word = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

var uuidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// checkMachine refuses what QEMU would refuse later and less clearly, and names
// that would lead out of the machine's directory.
func checkMachine(m *vnet.Machine, nic *NIC) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("machine %q: %w: %s", m.ID, ErrSpec, fmt.Sprintf(format, args...))
	}
	switch {
	case !word.MatchString(m.ID):
		return bad("its id is not a name")
	case !word.MatchString(m.Image):
		return bad("image %q is not a name", m.Image)
	case !uuidForm.MatchString(m.UUID):
		return bad("uuid %q", m.UUID)
	case m.CPUs < 1 || m.CPUs > 255:
		return bad("%d CPUs (want 1 to 255)", m.CPUs)
	case m.Memory < 16:
		return bad("%d MiB of memory (want 16 or more)", m.Memory)
	case !word.MatchString(nic.Tap) || len(nic.Tap) > 15:
		return bad("tap %q", nic.Tap)
	case nic.MAC == (vnet.MAC{}):
		return bad("its NIC has no MAC")
	case nic.MTU < 0 || nic.MTU > 65535 || nic.MTU > 0 && nic.MTU < 576:
		return bad("MTU %d (want 576 to 65535)", nic.MTU)
	}
	os, seen := 0, map[string]bool{}
	for _, d := range m.Disks {
		if d.OS {
			os++
		}
		if !word.MatchString(d.ID) || seen[d.ID] || d.Size < 0 || !d.OS && d.Size == 0 {
			return bad("disk %q of %d bytes", d.ID, d.Size)
		}
		seen[d.ID] = true
	}
	if os > 1 {
		return bad("%d OS disks", os)
	}
	return nil
}
