package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"replug/tests/lab/tapguest"
)

// GuestConfig says what cheap guest to make.
type GuestConfig struct {
	Name   string           // unique in the lab; letters, digits, dashes; at most 11 for the default tap
	MAC    net.HardwareAddr // of its NIC; nil: the kernel picks one
	MTU    int              // of its NIC and of the host's tap; 0: what VXLAN over the underlay leaves
	Queue  int              // frames that wait for the process that copies them, each way; 0: the kernel's number
	Tap    string           // the host's device; "": tap-<name>
	Device string           // the NIC's name to the monitor's set_link; "": any name
	Tree   string           // directory with a system's file system; "": a small one of busybox
}

// A Guest is a cheap guest: a namespace whose eth0 is a tap, whose frames go
// through a process to a tap on the host, with a QMP monitor that can bounce the
// link. It has a file system and a hostname of its own, so that a guest agent
// changes nothing on this machine. Its Node's Run runs the machine's programs
// inside its network; Exec runs the guest's programs inside its room.
type Guest struct {
	*Node
	c      GuestConfig
	host   *Node
	room   tapguest.Room
	keeper *Proc
}

// TapGuest makes a guest on a host. Its NIC is up and has no address.
func (l *Lab) TapGuest(ctx context.Context, host *Node, c GuestConfig) (*Guest, error) {
	if c.MTU == 0 {
		c.MTU = l.GuestMTU()
	}
	if c.Tap == "" {
		c.Tap = "tap-" + c.Name
	}
	if c.Name == "" || len(c.Tap) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("guest %q: a device's name (%s) has at most %d bytes", c.Name, c.Tap, unix.IFNAMSIZ-1)
	}
	node, err := l.addNode("g-" + c.Name)
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", c.Name, err)
	}
	g := &Guest{Node: node, c: c, host: host}
	if err := g.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("guest %s: %w", c.Name, err), deleteNetns(node.NetNS()))
	}
	return g, nil
}

func (g *Guest) start(ctx context.Context) (err error) {
	if g.room, err = g.lab.makeRoom(ctx, g.Node, g.c.Name, g.c.Tree); err != nil {
		return err
	}
	own := &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS}
	g.keeper, err = g.help(ctx, "tapguest", own, "tapguest", tapguest.Config{
		HostNetNS: g.host.NetNS(), HostTap: g.c.Tap,
		GuestNetNS: g.NetNS(), GuestDev: "eth0", MAC: g.c.MAC, MTU: g.c.MTU, Queue: g.c.Queue,
		Monitor: g.Monitor(), Device: g.c.Device, Room: g.room,
	})
	return err
}

// Monitor returns the path of the guest's QMP socket.
func (g *Guest) Monitor() string { return filepath.Join(g.Dir(), "qmp.sock") }

// Tap returns the name of the guest's device in the host's namespace.
func (g *Guest) Tap() string { return g.c.Tap }

// Keeper returns the process that copies the guest's frames.
func (g *Guest) Keeper() *Proc { return g.keeper }

// On returns the host.
func (g *Guest) On() *Node { return g.host }

// Root returns where the guest's file system is on this machine.
func (g *Guest) Root() string { return g.room.Root }

// Exec runs a program of the guest (busybox's, mostly) inside its room.
func (g *Guest) Exec(ctx context.Context, args ...string) ([]byte, error) {
	return g.Run(ctx, g.enter(args)...)
}

// Sh runs a line of shell inside the guest's room.
func (g *Guest) Sh(ctx context.Context, line string) ([]byte, error) {
	return g.Exec(ctx, "/bin/sh", "-c", line)
}

// StartDHCP starts busybox's DHCP client, which asks again when the link comes
// back. "leased <address>" is in its log then.
func (g *Guest) StartDHCP(ctx context.Context) (*Proc, error) {
	helper := "/bin/lab-helper"
	if err := copyFile(filepath.Join(g.lab.Dir(), "room", helper), g.lab.rec.Helper[0], 0o755); err != nil {
		return nil, fmt.Errorf("dhcp client: %w", err)
	}
	args := append([]string{helper}, g.lab.rec.Helper[1:]...)
	return g.StartInside(ctx, Cmd{Name: "dhcp", Args: append(args, "dhcp", "eth0")})
}

// StartAgent starts a static guest agent, given by its path on this machine, in
// the guest's room.
func (g *Guest) StartAgent(ctx context.Context, path string, args ...string) (*Proc, error) {
	name := filepath.Base(path)
	bin := filepath.Join(g.lab.Dir(), "room/bin")
	if g.c.Tree != "" {
		bin = filepath.Join("/proc", strconv.Itoa(g.keeper.PID()), "root", g.room.Root, "bin")
	}
	if err := copyFile(filepath.Join(bin, name), path, 0o755); err != nil {
		return nil, fmt.Errorf("guest agent: %w", err)
	}
	return g.StartInside(ctx, Cmd{Name: name, Args: append([]string{"/bin/" + name}, args...)})
}

// StartInside starts a program of the guest's file system inside its room.
func (g *Guest) StartInside(ctx context.Context, c Cmd) (*Proc, error) {
	if c.Name == "" {
		c.Name = filepath.Base(c.Args[0])
	}
	c.Args = g.enter(c.Args)
	return g.Start(ctx, c)
}

func (g *Guest) enter(args []string) []string {
	all := append([]string{}, g.lab.rec.Helper...)
	all = append(all, "enter", strconv.Itoa(g.keeper.PID()), g.room.Root)
	return append(all, args...)
}

// SetAddr gives the NIC this address and no other, and the default route if
// gateway is valid.
func (g *Guest) SetAddr(addr netip.Prefix, gateway netip.Addr) error {
	return g.Netlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		old, err := h.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, a := range old {
			if err := h.AddrDel(link, &a); err != nil {
				return fmt.Errorf("remove %s: %w", a.IPNet, err)
			}
		}
		if err := addAddr(h, "eth0", addr); err != nil || !gateway.IsValid() {
			return err
		}
		return h.RouteReplace(&netlink.Route{Gw: gateway.AsSlice()})
	})
}

// AddRoute sends a prefix to a next hop.
func (g *Guest) AddRoute(dst netip.Prefix, via netip.Addr) error {
	return g.Netlink(func(h *netlink.Handle) error {
		return h.RouteReplace(&netlink.Route{Dst: ipNet(dst), Gw: via.AsSlice()})
	})
}

// Addrs returns the NIC's addresses as the guest sees them.
func (g *Guest) Addrs() (addrs []netip.Prefix, err error) {
	err = g.Netlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		list, err := h.AddrList(link, netlink.FAMILY_ALL)
		for _, a := range list {
			ip, _ := netip.AddrFromSlice(a.IP)
			bits, _ := a.Mask.Size()
			addrs = append(addrs, netip.PrefixFrom(ip.Unmap(), bits))
		}
		return err
	})
	return addrs, err
}

// MAC returns the NIC's address as the guest sees it.
func (g *Guest) MAC() (mac net.HardwareAddr, err error) {
	err = g.Netlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName("eth0")
		if err == nil {
			mac = link.Attrs().HardwareAddr
		}
		return err
	})
	return mac, err
}

// PowerOff kills the guest as a power cut does: its tap vanishes from the host.
func (g *Guest) PowerOff(ctx context.Context) error {
	inside := "in namespace " + filepath.Base(g.NetNS()) // programs that clean their environment, as ifup does
	for left := true; left && ctx.Err() == nil; {        // one that is being executed right now may be missed
		left = false
		for _, m := range members(g.lab.rec.Name) {
			if m.node == g.Name || m.why == inside {
				m.signal(unix.SIGKILL)
				left = true
			}
		}
	}
	g.keeper.Wait(ctx) // says how it ended, which is known
	return context.Cause(ctx)
}

// Stop removes the guest: its processes, taps, namespace and files.
func (g *Guest) Stop(ctx context.Context) error {
	return errors.Join(g.PowerOff(ctx), deleteNetns(g.NetNS()), os.RemoveAll(g.Dir()))
}

// WriteFile writes a file of the guest's, and the directories above it.
func (g *Guest) WriteFile(path string, mode os.FileMode, content []byte) error {
	full := filepath.Join("/proc", strconv.Itoa(g.keeper.PID()), "root", g.room.Root, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return err
	}
	return os.WriteFile(full, content, mode)
}
