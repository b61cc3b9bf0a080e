package guest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A way makes a DHCP client ask for a fresh lease.
type way struct {
	name string
	do   func(ctx context.Context, l *linux, st linkState, c otherClient) error
}

// ways are tried in turn until the NIC has its new address. None of them restarts a
// network manager, which would lose what others have configured (WALinuxAgent 3356);
// a client that does nothing but one NIC is another matter. networkd's forcerenew
// asks for the old address (Flatcar 1736).
var ways = map[string][]way{
	networkd:       {reconfigure, linkDownUp},
	networkManager: {activate, command("nmcli", "--wait", "0", "device", "connect")},
	dhcpcd:         {askAtOnce, linkDownUp},
	dhclient:       {{"dhclient, begun anew", beginAnew}},
	udhcpc:         {{"SIGUSR2 and SIGUSR1", forget}, {"udhcpc, begun anew", beginAnew}},
	udhcpc6:        {{"SIGUSR2 and SIGUSR1", forget}, {"udhcpc6, begun anew", beginAnew}},
}

// command runs a client's own tool on the NIC.
func command(args ...string) way {
	return way{strings.Join(args, " "), func(ctx context.Context, _ *linux, st linkState, _ otherClient) error {
		return run(ctx, append(slices.Clone(args), st.name)...)
	}}
}

// run runs a program that is to be done in seconds.
func run(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, lastLine(out))
	}
	return nil
}

func lastLine(b []byte) string {
	s := strings.TrimSpace(string(b))
	if len(s) > 500 {
		s = s[len(s)-500:]
	}
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// reconfigure is `networkctl reconfigure`.
var reconfigure = onBus("reconfigure", func(b *bus, st linkState) error {
	_, err := b.call("org.freedesktop.network1", "/org/freedesktop/network1", "org.freedesktop.network1.Manager", "ReconfigureLink", int32(st.index))
	return err
})

// activate is `nmcli device connect`: NetworkManager begins the NIC's connection anew,
// as it does after a long cut of the link. A reapply without a change keeps the lease
// (1.42), and one that follows another too soon never asks for an IPv6 lease.
var activate = onBus("activate", func(b *bus, st linkState) error {
	const name, at, iface = "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager"
	device, err := b.call(name, at, iface, "GetDeviceByIpIface", st.name)
	if err != nil {
		return err
	}
	_, err = b.call(name, at, iface, "ActivateConnection", object("/"), object(device), object("/"))
	return err
})

// onBus is a way over D-Bus.
func onBus(name string, do func(*bus, linkState) error) way {
	return way{name, func(ctx context.Context, _ *linux, st linkState, _ otherClient) error {
		b, err := dialBus(ctx, systemBus)
		if err != nil {
			return err
		}
		defer b.close()
		return do(b, st)
	}}
}

// linkDownUp sets the NIC down and up, which looks like a flap to whoever follows
// the carrier.
var linkDownUp = way{"link down and up", func(ctx context.Context, l *linux, st linkState, _ otherClient) error {
	return l.link.quietly(ctx, func() error { return errors.Join(l.nic.setDown(st.index), setUp(st.index)) })
}}

// forget is udhcpc's own: USR2 forgets the lease, USR1 asks for one. The second is not
// sent before the first was handled: of two that come close together the later one may
// be handled first (the kernel puts its frame on top, kernel/signal.c), and a client that
// asks and then forgets asks no more.
func forget(ctx context.Context, _ *linux, _ linkState, c otherClient) error {
	for _, pid := range c.pids {
		if err := unix.Kill(pid, unix.SIGUSR2); err != nil {
			return fmt.Errorf("signal %s: %w", c.name, err)
		}
		handled(ctx, pid, unix.SIGUSR2)
		if err := unix.Kill(pid, unix.SIGUSR1); err != nil {
			return fmt.Errorf("signal %s: %w", c.name, err)
		}
	}
	return nil
}

// handled waits until a process has taken a signal and sleeps again, a second at most.
func handled(ctx context.Context, pid int, s unix.Signal) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for ; ctx.Err() == nil; pause(ctx, time.Millisecond) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return // it is gone
		}
		state, pending := statusLine(status, "State:"), statusLine(status, "ShdPnd:")
		mask, _ := strconv.ParseUint(pending, 16, 64)
		if strings.HasPrefix(state, "S") && mask>>(s-1)&1 == 0 {
			return
		}
	}
}

// beginAnew ends a client of one NIC and starts it by the same command line. It gets
// no chance to release its lease or to take its address away: both belong to the
// network that is gone, so the address goes here. A new client takes up the lease
// that it finds on disk, and hears at once that it is refused. What was ended is begun
// again whatever becomes of the link and of the agent meanwhile: nobody else would
// before the guest's next boot.
func beginAnew(ctx context.Context, l *linux, st linkState, c otherClient) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ending)
	defer cancel()
	var errs []error
	for _, pid := range c.pids {
		if err := end(ctx, pid); err != nil {
			errs = append(errs, fmt.Errorf("end %s: %w", c.name, err))
		}
	}
	remove := l.nic.clear
	if c.six() {
		remove = l.nic.clear6
	}
	return errors.Join(append(errs, remove(st.index, netip.Prefix{}), c.begin())...)
}

// ending is more than a process needs to be gone that was killed.
const ending = 5 * time.Second

// begin starts the client by its own command line.
func (c otherClient) begin() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	p, err := os.StartProcess(c.program(), c.args, &os.ProcAttr{Dir: "/", Env: clientEnv(), Files: []*os.File{null, null, null},
		Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return fmt.Errorf("start %s again: %w", c.name, err)
	}
	go p.Wait() // it leaves a parent behind when it becomes a daemon, or runs on
	return nil
}

// six reports whether the client speaks DHCPv6.
func (c otherClient) six() bool { return c.name == udhcpc6 || slices.Contains(c.args, "-6") }

// program is the file to execute.
func (c otherClient) program() string {
	if path, err := exec.LookPath(c.args[0]); err == nil {
		return path
	}
	return c.args[0]
}

func clientEnv() []string {
	if os.Getenv("PATH") == "" {
		return append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	}
	return os.Environ()
}

// end kills a process and waits until it is gone.
func end(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for ctx.Err() == nil { // a pidfd becomes readable when its process ends
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return ctx.Err()
}
