package bpf

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Invariant 13: no frame overtakes another of its flow, on any way in: small ones
// follow large ones that GRO or the sender has merged, and those take another way
// up (see goes_up). The receiver's NAPI runs in a thread, so that it finds both
// at once, as on a busy NIC; by itself it is done with each before the next comes.
func TestFlowsStayInOrder(t *testing.T) {
	for _, c := range []struct {
		wire string
		lay  wiring
		xdp  bool
	}{
		{"a wire that cuts superpackets, received by tcx", copied, false},
		{"a wire that cuts superpackets, received by XDP", copied, true},
		{"a wire that carries superpackets, received by XDP", uncut, true},
	} {
		t.Run(c.wire, func(t *testing.T) {
			b := newBed(t, fabric4(1550), c.lay)
			hosts := []*machine{b.host(0), b.host(1)}
			from, to := b.guest(hosts[0], redA, 1500, 1500, hosts...), b.guest(hosts[1], redB, 1500, 1500, hosts...)
			from.in(func() error { return sysctl("net/ipv4/tcp_autocorking=0") })
			for _, h := range hosts {
				h.in(func() error { return errors.Join(tool("ethtool", "-K up0 gro on"), threaded("up0")) })
				if c.xdp { // see AttachNIC for what a veth hands XDP
					h.in(func() error { return errors.Join(tool("ethtool", "-K up0 tx off"), h.dp.AttachNIC(h.uplink)) })
				}
			}
			for family := range 2 {
				inOrder(t, from, to, family)
				if c.xdp {
					byXDP(t, from, to, family)
				}
			}
		})
	}
}

// byXDP fails unless small datagrams of a known flow go into the tap without
// from_wire having seen them.
func byXDP(t *testing.T, from, to *guest, family int) {
	t.Helper()
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	in, out := datagramPair(t, from, to, family)
	runs := func() uint64 {
		s, err := to.host.dp.objs.FromWire.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return s.RunCount
	}
	const sent = 100
	var before uint64
	for i := range sent {
		if _, err := out.Write(datagram(uint64(i), 37)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 64)
		if err := in.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if n, err := in.Read(b); err != nil || string(b[:n]) != string(datagram(uint64(i), 37)) {
			t.Fatalf("datagram %d: %d bytes, %v", i, n, err)
		}
		if i == 0 { // from_wire begins the flow
			before = runs()
		}
	}
	if n := runs() - before; n >= sent/2 {
		t.Errorf("family %d: from_wire saw %d frames beside %d datagrams: XDP hasn't redirected them", family, n, sent)
	}
}

// threaded gives a device's NAPI threads of its own.
func threaded(device string) error { return setDevice(device, "threaded", "1") }

// setDevice writes an attribute of a device in the namespace of the thread.
func setDevice(device, attribute, value string) error {
	dir, err := os.MkdirTemp("", "sys")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Mount("sys", dir, "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount a sysfs: %w", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	return os.WriteFile(filepath.Join(dir, "class/net", device, attribute), []byte(value), 0)
}

func inOrder(t *testing.T, from, to *guest, family int) {
	t.Helper()
	before := overtaken(t, from) + overtaken(t, to)
	c := connect(t, from, to, family)
	if err := c.rounds(300); err != nil {
		t.Errorf("TCP, family %d: %v; drops %v and %v", family, err, from.host.reasons(), to.host.reasons())
	}
	if n := overtaken(t, from) + overtaken(t, to) - before; n != 0 {
		t.Errorf("TCP, family %d: %d segments overtook others", family, n)
	}
	if err := datagrams(from, to, family, 100); err != nil {
		t.Errorf("UDP, family %d: %v; drops %v and %v", family, err, from.host.reasons(), to.host.reasons())
	}
}

// rounds sends large and small messages in turn, each round when the last one has
// arrived, so that nothing queues up and is sent as one.
func (c connection) rounds(n int) error {
	whole := 0
	for _, size := range messages {
		whole += size
	}
	got := make([]byte, whole)
	for i := range n {
		if err := errors.Join(c.from.SetDeadline(time.Now().Add(patience)), c.to.SetDeadline(time.Now().Add(patience))); err != nil {
			return err
		}
		sent := noise(whole, uint64(i))
		for at, k := 0, 0; at < whole; k++ {
			if _, err := c.from.Write(sent[at : at+messages[k]]); err != nil {
				return err
			}
			at += messages[k]
		}
		if _, err := io.ReadFull(c.to, got); err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
		if string(got) != string(sent) {
			return fmt.Errorf("round %d: other bytes than were sent", i)
		}
	}
	return nil
}
