package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"replug/tests/lab"
)

//go:generate go tool bpf2go -target bpfel -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" pps pps.bpf.c

// Keys of the map counters.
const (
	generated = 0
	received  = 1
)

// runLive makes BPF_PROG_RUN send real frames (BPF_F_TEST_XDP_LIVE_FRAMES).
const runLive = 2

// A blast is a generator of small UDP frames in one namespace and a sink in another.
type blast struct {
	from, to *lab.Node
	out, in  string // devices
	frame    []byte
	also     []int // processes whose CPU time counts, too
	objs     ppsObjects
	link     link.Link
}

// newBlast attaches the sink. Frames are 60 bytes, of 1,024 flows.
func newBlast(from *lab.Node, out string, to *lab.Node, in string, src, dst netip.Addr, srcMAC, dstMAC net.HardwareAddr) (*blast, error) {
	b := &blast{from: from, to: to, out: out, in: in, frame: udpFrame(src, dst, srcMAC, dstMAC)}
	spec, err := loadPps()
	if err != nil {
		return nil, err
	}
	ifindex, err := indexOf(from, out)
	if err != nil {
		return nil, err
	}
	if err := spec.Variables["out"].Set(uint32(ifindex)); err != nil {
		return nil, err
	}
	if err := spec.Variables["head"].Set([42]byte(b.frame[:42])); err != nil {
		return nil, err
	}
	if err := spec.LoadAndAssign(&b.objs, nil); err != nil {
		return nil, fmt.Errorf("load the generator: %w", err)
	}
	err = to.Do(func() error {
		dev, err := net.InterfaceByName(in)
		if err != nil {
			return err
		}
		b.link, err = link.AttachTCX(link.TCXOptions{Program: b.objs.Sink, Interface: dev.Index, Attach: ebpf.AttachTCXIngress})
		return err
	})
	if err != nil {
		b.objs.Close()
		return nil, fmt.Errorf("attach the sink: %w", err)
	}
	return b, nil
}

func (b *blast) close() {
	b.link.Close()
	b.objs.Close()
}

// run sends for some time and returns how many frames arrived for each second of
// CPU that the whole way took.
func (b *blast) run(ctx context.Context, d time.Duration) (perSecond float64, err error) {
	before, err := b.count(received)
	if err != nil {
		return 0, err
	}
	spent := cpu(b.also...)
	var own time.Duration
	if err := b.from.Do(func() (err error) { own, err = b.send(ctx, d); return err }); err != nil {
		return 0, err
	}
	after, err := b.count(received)
	if err != nil {
		return 0, err
	}
	return float64(after-before) / (own + cpu(b.also...) - spent).Seconds(), nil
}

// send returns the CPU time of the sending thread: what the frames cost on their
// way is charged to it, or to ksoftirqd.
func (b *blast) send(ctx context.Context, d time.Duration) (time.Duration, error) {
	release, err := keepToFirstCPU()
	if err != nil {
		return 0, err
	}
	defer release()
	begin, end := threadCPU(), time.Now().Add(d)
	for time.Now().Before(end) && ctx.Err() == nil {
		if _, err := b.objs.Generate.Run(&ebpf.RunOptions{Data: b.frame, Repeat: 1 << 14, Flags: runLive}); err != nil {
			return 0, fmt.Errorf("generate frames: %w", err)
		}
	}
	return threadCPU() - begin, ctx.Err()
}

func (b *blast) count(which uint32) (n uint64, err error) {
	var each []uint64
	if err := b.objs.Counters.Lookup(which, &each); err != nil {
		return 0, fmt.Errorf("count frames: %w", err)
	}
	for _, v := range each {
		n += v
	}
	return n, nil
}

// udpFrame is Ethernet, IPv4 and UDP to the sink's port, 60 bytes in all.
func udpFrame(src, dst netip.Addr, srcMAC, dstMAC net.HardwareAddr) []byte {
	f := make([]byte, 60)
	copy(f, dstMAC)
	copy(f[6:], srcMAC)
	binary.BigEndian.PutUint16(f[12:], 0x0800)
	ip := f[14:34]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(len(f)-14))
	copy(ip[12:], src.AsSlice())
	copy(ip[16:], dst.AsSlice())
	sumHeader(ip)
	binary.BigEndian.PutUint16(f[34:], 10000)
	binary.BigEndian.PutUint16(f[36:], 9000)
	binary.BigEndian.PutUint16(f[38:], uint16(len(f)-34))
	return f
}

// sumHeader writes the checksum of an IPv4 header without options.
func sumHeader(ip []byte) {
	binary.BigEndian.PutUint16(ip[10:], 0)
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
}

func indexOf(n *lab.Node, dev string) (index int, err error) {
	err = n.Do(func() error {
		d, err := net.InterfaceByName(dev)
		if err == nil {
			index = d.Index
		}
		return err
	})
	return index, err
}
