package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"replug/tests/lab"
	"replug/tests/lab/space"
)

const (
	conns     = 6
	firstPort = 7100
	orderTime = 3 * time.Second
)

// order sends large and small messages through the datapath and asks the
// sender's TCP whether anything overtook: into a tap, and into a virtual machine.
// The receiver's NAPI runs in a thread, which mixes flows as a busy NIC does.
func order(ctx context.Context, o Options) (figures []Figure, err error) {
	w, err := newWorld(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.down(ctx)) }()
	undo, err := disown(w.sides[0])
	if err != nil {
		return nil, err
	}
	defer undo()
	if err := space.Sysfs(w.sides[1].host.NetNS(), thread); err != nil {
		return nil, fmt.Errorf("thread the wire's NAPI: %w", err)
	}
	var runs []float64
	for _, into := range append(slices.Repeat([]func(context.Context) (float64, error){w.intoTap}, o.Rounds), w.intoVM) {
		n, err := w.through(ctx, into)
		if err != nil {
			return nil, err
		}
		runs = append(runs, n)
	}
	return []Figure{atMost("tcp_reorders", "SACK reorders", runs, sum, 0, "", 0)}, nil
}

func thread() error {
	return os.WriteFile(filepath.Join("/sys/class/net", wire, "threaded"), []byte("1"), 0)
}

// through brings the datapath into force for one measurement.
func (w *world) through(ctx context.Context, measure func(context.Context) (float64, error)) (n float64, err error) {
	undo, err := replug(ctx, w)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, undo(context.WithoutCancel(ctx))) }()
	return measure(ctx)
}

// intoTap counts the reorders that the sender saw while messages of mixed sizes
// went to the other guest.
func (w *world) intoTap(ctx context.Context) (float64, error) {
	to := w.sides[1]
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	for i := range conns {
		var l net.Listener
		if err := to.guest.Do(func() (err error) {
			l, err = net.Listen("tcp4", netip.AddrPortFrom(to.nics[tapNIC].addr, uint16(firstPort+i)).String())
			return err
		}); err != nil {
			return 0, err
		}
		listeners = append(listeners, l)
		go drain(l)
	}
	return w.messages(ctx, to.nics[tapNIC].addr)
}

// intoVM is the same into a virtual machine, which takes the tap's place: the
// port is moved to the machine's tap, with its address.
func (w *world) intoVM(ctx context.Context) (n float64, err error) {
	image, err := lab.BuildGuest(ctx, "")
	if err != nil {
		return 0, err
	}
	to := w.sides[1]
	vm, err := w.lab.BootVM(ctx, to.host, lab.VMConfig{Name: "order", Image: image, MAC: to.nics[tapNIC].mac, MTU: guestMTU})
	if err != nil {
		return 0, err
	}
	if _, err := vm.Ready(ctx); err != nil {
		return 0, err
	}
	if err := to.host.Do(func() error { return movePort(to, vm.Tap()) }); err != nil {
		return 0, err
	}
	script := fmt.Sprintf("killall udhcpc; ip addr flush dev eth0; ip addr add %s/24 dev eth0; ip link set eth0 up\n", to.nics[tapNIC].addr)
	for i := range conns {
		script += fmt.Sprintf("(nc -l -p %d >/dev/null 2>&1 &)\n", firstPort+i)
	}
	if _, err := vm.Exec(ctx, script); err != nil {
		return 0, err
	}
	return w.messages(ctx, to.nics[tapNIC].addr)
}

func drain(l net.Listener) {
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	for b := make([]byte, 1<<20); err == nil; {
		_, err = c.Read(b)
	}
}

// messages sends 20,000, 100, 9,000 and 100 bytes in turn over each connection,
// and returns by how much the sender's count of SACK reorders grew.
func (w *world) messages(ctx context.Context, dst netip.Addr) (float64, error) {
	from := w.sides[0].guest.Node
	before, err := sackReorders(from)
	if err != nil {
		return 0, err
	}
	all := make([]net.Conn, conns)
	for i := range all {
		err := from.Do(func() (err error) {
			all[i], err = (&net.Dialer{Timeout: 5 * time.Second, Control: cubic}).DialContext(ctx, "tcp4", netip.AddrPortFrom(dst, uint16(firstPort+i)).String())
			return err
		})
		if err != nil {
			return 0, err
		}
		defer all[i].Close()
	}
	if err := chatter(all); err != nil {
		return 0, err
	}
	after, err := sackReorders(from)
	return float64(after - before), err
}

// cubic slows a connection down at a loss: with one that doesn't (BBR), the queues
// of the test bed overflow, and what is retransmitted looks like reordering.
func cubic(_, _ string, c syscall.RawConn) (err error) {
	return errors.Join(c.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
	}), err)
}

// breath between two rounds of messages: short enough that a flow's small frames
// follow its large ones within the 10 ms in which they might overtake (a datapath
// that let them had 1,915 reorders in 3 s), long enough that no queue overflows,
// since what is lost and sent again looks like reordering in any variant.
const breath = 4 * time.Millisecond

// chatter writes large and small messages to all connections in turn.
func chatter(all []net.Conn) error {
	big := make([]byte, 20000)
	pause := time.NewTicker(breath)
	defer pause.Stop()
	for end := time.Now().Add(orderTime); time.Now().Before(end); <-pause.C {
		for _, c := range all {
			for _, n := range []int{20000, 100, 9000, 100} {
				if _, err := c.Write(big[:n]); err != nil {
					return fmt.Errorf("send messages: %w", err)
				}
			}
		}
	}
	return nil
}

// sackReorders reads TcpExt's TCPSACKReorder inside a namespace.
func sackReorders(n *lab.Node) (count int, err error) {
	err = n.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/netstat")
		if err != nil {
			return err
		}
		lines := strings.Split(string(b), "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for j, name := range names {
				if name == "TCPSACKReorder" && j < len(values) {
					count, err = strconv.Atoi(values[j])
					return err
				}
			}
		}
		return errors.New("the kernel doesn't count TCPSACKReorder")
	})
	return count, err
}
