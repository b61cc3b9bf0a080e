package guests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"replug/tests/lab"
)

// A machine is what a client runs in.
type machine interface {
	sh(ctx context.Context, script string) (string, error)
	script(c Client) string // that starts the client here
	agent(ctx context.Context, dhcp string) error
	addrs(ctx context.Context) ([]netip.Prefix, error)
	tap() string
	monitor() string
	log(ctx context.Context) string // of the agent
	managers(ctx context.Context) (string, error)
	reset(ctx context.Context, next net.HardwareAddr) (net.HardwareAddr, error)
	stop(ctx context.Context) error
}

// A room is a cheap guest with the clients' file system.
type room struct {
	*lab.Guest
	program string
	mac     net.HardwareAddr
	proc    *lab.Proc
}

func newRoom(ctx context.Context, l *lab.Lab, name, image, agent string, mac net.HardwareAddr) (machine, error) {
	g, err := l.TapGuest(ctx, l.Host(1), lab.GuestConfig{Name: name, MAC: mac, MTU: l.GuestMTU(), Tree: filepath.Join(image, "tree")})
	if err != nil {
		return nil, err
	}
	return &room{Guest: g, program: agent, mac: mac}, nil
}

func (r *room) sh(ctx context.Context, script string) (string, error) {
	out, err := r.Sh(ctx, script)
	return string(out), err
}

// script turns IPv6 on, which cheap guests have off. The link is down until the client
// comes, as at a boot: else the kernel would make an address of the prefix, which
// networkd doesn't know for its own when it meets it again.
func (r *room) script(c Client) string {
	return "ip link set eth0 down\necho 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6\n" + c.room + "\n"
}

func (r *room) agent(ctx context.Context, dhcp string) (err error) {
	r.proc, err = r.StartAgent(ctx, r.program, "--dhcp", dhcp)
	return err
}

func (r *room) addrs(context.Context) ([]netip.Prefix, error) { return r.Addrs() }
func (r *room) tap() string                                   { return r.Tap() }
func (r *room) monitor() string                               { return r.Monitor() }
func (r *room) stop(ctx context.Context) error                { return r.Stop(ctx) }

// reset does nothing: each client has a room of its own.
func (r *room) reset(context.Context, net.HardwareAddr) (net.HardwareAddr, error) { return r.mac, nil }

// managers returns nothing: nobody would restart them here.
func (r *room) managers(context.Context) (string, error) { return "", nil }

func (r *room) log(context.Context) string {
	if r.proc == nil {
		return ""
	}
	b, _ := os.ReadFile(r.proc.Log())
	return string(b)
}

// A vm is a machine with Debian's kernel and systemd, for one client after the other.
type vm struct {
	*lab.VM
	disk string
}

func newVM(ctx context.Context, l *lab.Lab, name, image, agent string, mac net.HardwareAddr) (machine, error) {
	disk := filepath.Join(l.Dir(), "agent-"+name)
	if err := padded(disk, agent); err != nil {
		return nil, err
	}
	v, err := l.BootVM(ctx, l.Host(1), lab.VMConfig{Name: name, Image: image, MAC: mac, MTU: l.GuestMTU(), Memory: 512, Accel: lab.TCG,
		Extra: []string{"-drive", "id=agent,if=none,format=raw,readonly=on,file=" + disk, "-device", "virtio-blk-pci,drive=agent,serial=agent"}})
	if err != nil {
		return nil, err
	}
	m := &vm{v, disk}
	if _, err := v.Ready(ctx); err != nil {
		return nil, errors.Join(err, m.stop(context.WithoutCancel(ctx)))
	}
	_, err = m.sh(ctx, "cat /dev/vdb >/usr/local/sbin/replug-guest && chmod 755 /usr/local/sbin/replug-guest && sysctl -q -w net.ipv6.conf.eth0.accept_dad=1")
	return m, err
}

// padded copies a file to a disk's multiple of bytes.
func padded(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, in)
	return errors.Join(err, out.Truncate((n+4095)/4096*4096), out.Close())
}

// sh runs a script by Debian's shell: busybox's, which serves the channel, would take
// its own ip and the like before those of the PATH.
func (v *vm) sh(ctx context.Context, script string) (string, error) {
	return v.Exec(ctx, "/bin/dash <<'END-OF-SCRIPT'\n"+script+"\nEND-OF-SCRIPT\n")
}

func (v *vm) script(c Client) string { return c.start + "\n" }
func (v *vm) tap() string            { return v.Tap() }
func (v *vm) monitor() string        { return v.Monitor() }

func (v *vm) agent(ctx context.Context, dhcp string) error {
	_, err := v.sh(ctx, "systemd-run -q --collect --unit=replug-guest -p KillMode=process -p StandardError=file:/run/replug-guest.log /usr/local/sbin/replug-guest --iface eth0 --dhcp "+dhcp)
	return err
}

func (v *vm) addrs(ctx context.Context) ([]netip.Prefix, error) {
	out, err := v.sh(ctx, "ip -o addr show dev eth0 | awk '{print $4}'")
	if err != nil {
		return nil, err
	}
	var all []netip.Prefix
	for f := range strings.FieldsSeq(out) {
		p, err := netip.ParsePrefix(f)
		if err != nil {
			return nil, fmt.Errorf("address of the guest: %w", err)
		}
		all = append(all, p)
	}
	return all, nil
}

// managers returns the processes of the network managers, which nobody may restart:
// other NICs and their owner's settings hang on them.
func (v *vm) managers(ctx context.Context) (string, error) {
	out, err := v.sh(ctx, "for u in systemd-networkd NetworkManager; do echo $u $(systemctl show -p MainPID --value $u); done")
	return strings.Join(strings.Fields(out), " "), err
}

func (v *vm) log(ctx context.Context) string {
	out, _ := v.sh(ctx, "cat /run/replug-guest.log")
	return out
}

// reset takes everything of a client away, and gives the NIC another MAC: the address
// that a guest has made of its MAC rests for a minute when its port is gone.
func (v *vm) reset(ctx context.Context, next net.HardwareAddr) (net.HardwareAddr, error) {
	out, err := v.sh(ctx, `systemctl stop replug-guest systemd-networkd.socket systemd-networkd NetworkManager dhcpcd 2>/dev/null
ifdown --force eth0 2>/dev/null
pkill -9 -x dhclient; pkill -9 -f '[u]dhcpc'; pkill -9 -x dhcpcd
rm -rf /run/replug-guest.log /etc/systemd/network/10-eth0.network /etc/NetworkManager/system-connections/* /var/lib/NetworkManager/*lease* \
	/var/lib/dhcp/* /var/lib/dhcpcd/*.lease* /run/systemd/netif /run/NetworkManager/resolv.conf /run/network/ifstate* /var/lib/replug-guest
: >/etc/resolv.conf; : >/etc/network/interfaces
ip link set eth0 down
ip link set eth0 address `+next.String()+`
ip addr flush dev eth0
ip route flush dev eth0
ip -6 route flush dev eth0
sysctl -q -w net.ipv6.conf.eth0.disable_ipv6=0 net.ipv6.conf.eth0.accept_ra=1 net.ipv6.conf.eth0.autoconf=1 net.ipv6.conf.eth0.addr_gen_mode=0 net.ipv6.conf.eth0.accept_dad=1 net.ipv6.neigh.eth0.retrans_time_ms=1000
true`)
	if err != nil {
		return nil, fmt.Errorf("reset the guest: %w: %s", err, out)
	}
	return next, nil
}

func (v *vm) stop(ctx context.Context) error {
	return errors.Join(v.Stop(ctx), os.Remove(v.disk))
}
