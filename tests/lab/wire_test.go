package lab_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"replug/tests/lab"
)

// send puts a frame on a device, n times.
func send(t *testing.T, node *lab.Node, dev string, frame []byte, n int) {
	t.Helper()
	err := node.Do(func() error {
		link, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for range n {
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// frame makes a frame of an EtherType for experiments (IEEE 802, 0x88b5), so
// that nobody answers it.
func frame(t *testing.T, text string) []byte {
	t.Helper()
	head, err := hex.DecodeString("ffffffffffff" + "02720102030488b5")
	if err != nil {
		t.Fatal(err)
	}
	return append(head, text...)
}

func record(t *testing.T, node *lab.Node, dev, file string) *lab.Recording {
	t.Helper()
	r, err := node.Capture(dev, file)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// frames stops a recording and returns those that hold the text.
func frames(t *testing.T, r *lab.Recording, file, text string) (found [][]byte) {
	t.Helper()
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	all, err := lab.ReadPcap(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if bytes.Contains(f.Data, []byte(text)) {
			found = append(found, f.Data)
		}
	}
	return found
}

func TestCapture(t *testing.T) {
	ctx := within(t, time.Minute)
	h := shared.Host(1)
	file := filepath.Join(t.TempDir(), "wire.pcap")
	r := record(t, h, "up0", file)
	if _, err := h.Run(ctx, "busybox", "ping", "-c", "1", "-W", "15", shared.ServerAddr().String()); err != nil { // one: they are counted
		t.Fatal(err)
	}
	plain := frame(t, "a frame of exactly these bytes, padded to sixty and more..")
	send(t, shared.Router(), "h1", plain, 3) // arrives at up0
	// 802.1Q, priority 5, VLAN 0x2a7: the kernel takes the tag out, the file has it.
	tagged := append(append(append([]byte{}, plain[:12]...), 0x81, 0x00, 0xa2, 0xa7), plain[12:]...)
	send(t, shared.Router(), "h1", tagged, 1)
	// Stop keeps what was there before it.
	got := frames(t, r, file, "exactly these bytes")
	if len(got) != 4 {
		t.Fatalf("%d frames are in the file, want 4", len(got))
	}
	for i, want := range [][]byte{plain, plain, plain, tagged} {
		if !bytes.Equal(got[i], want) {
			t.Errorf("frame %d = %x, want %x", i, got[i], want)
		}
	}
	// A tool that others use reads it too.
	out, err := h.Run(ctx, "tshark", "-r", file, "-Y", "icmp || eth.type == 0x88b5 || vlan.etype == 0x88b5",
		"-T", "fields", "-e", "icmp.type", "-e", "vlan.id", "-e", "frame.time_delta")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	if len(lines) != 6 || !strings.HasPrefix(lines[0], "8\t") || !strings.HasPrefix(lines[1], "0\t") || !strings.HasPrefix(lines[5], "\t679\t0.") {
		t.Errorf("tshark reads %q, want echo, reply, three frames and one of VLAN 679", lines)
	}
}

func TestCaptureOfNothing(t *testing.T) {
	if _, err := shared.Host(1).Capture("nosuch0", "x.pcap"); err == nil {
		t.Error("a device that isn't there can be captured")
	}
	if _, err := os.Stat(filepath.Join(shared.Host(1).Dir(), "x.pcap")); err == nil {
		t.Error("the refused capture left a file")
	}
}

func TestLoss(t *testing.T) {
	h, r := shared.Host(2), shared.Router()
	lost, err := h.Lose("up0", lab.In, 0.25)
	if err != nil {
		t.Fatal(err)
	}
	defer lost.Clear()
	const sent = 2000
	send(t, r, "h2", frame(t, "lossy"), sent)
	dropped, err := lost.Dropped()
	if err != nil {
		t.Fatal(err)
	}
	// Twelve standard deviations: sqrt(2000 * 0.25 * 0.75) is 19.4.
	if dropped < 500-233 || dropped > 500+233 {
		t.Errorf("%d of %d frames were lost, want about a quarter", dropped, sent)
	}
	if err := lost.Set(0); err != nil {
		t.Fatal(err)
	}
	send(t, r, "h2", frame(t, "safe"), sent)
	if after, _ := lost.Dropped(); after != dropped {
		t.Errorf("%d frames were lost with a share of 0", after-dropped)
	}
	// What is counted may be an ARP reply: what goes out is looked for at its other end.
	file := filepath.Join(t.TempDir(), "out.pcap")
	out := record(t, r, "h2", file)
	if err := lost.Set(1); err != nil {
		t.Fatal(err)
	}
	send(t, h, "up0", frame(t, "the other way"), 40)
	if got := frames(t, out, file, "the other way"); len(got) != 40 {
		t.Errorf("%d of 40 frames out arrived under a loss of frames in", len(got))
	}
	for _, share := range []float64{-0.1, 1.01} {
		if err := lost.Set(share); err == nil {
			t.Errorf("a share of %v is accepted", share)
		}
	}
}

func TestPartition(t *testing.T) {
	ctx := within(t, time.Minute)
	h1, h2 := shared.Host(1), shared.Host(2)
	cut, err := h2.Partition()
	if err != nil {
		t.Fatal(err)
	}
	if err := ping(ctx, h1, shared.HostAddr(2).String()); err == nil {
		t.Error("a host that is cut off answers")
	}
	if err := reaches(ctx, h1, shared.ServerAddr().String()); err != nil {
		t.Errorf("the others are cut off too: %v", err)
	}
	if n, err := cut.Dropped(); n == 0 || err != nil {
		t.Errorf("%d frames were dropped (%v)", n, err)
	}
	if err := cut.Clear(); err != nil {
		t.Fatal(err)
	}
	if err := reaches(ctx, h1, shared.HostAddr(2).String()); err != nil {
		t.Errorf("after the partition: %v", err)
	}
}

// A cable carries bytes only, and can delay; the underlay may be one of IPv6, which
// is routed as one of IPv4 is.
func TestCable(t *testing.T) {
	ctx := within(t, time.Minute)
	l, err := lab.Up(ctx, lab.Config{Name: "labcable", Hosts: 2, Wire: lab.WireCable, Family: lab.IPv6, Threaded: true, Helper: helper})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	to := l.HostAddr(2).String()
	if err := reaches(ctx, l.Host(1), l.ServerAddr().String()); err != nil {
		t.Fatal(err)
	}
	if err := ping(ctx, l.Host(1), l.PAPrefix(2).Addr().Next().String()); err == nil {
		t.Error("a provider address answered: it must not be local to the host")
	}
	if err := reaches(ctx, l.Host(1), to); err != nil {
		t.Fatal(err)
	}
	quick := timed(t, l.Host(1), to)
	const delay = 40 * time.Millisecond
	if err := l.Host(2).Delay(ctx, delay); err != nil {
		t.Fatal(err)
	}
	// None is quicker, and one of several not much slower, however busy the machine is.
	if err := lab.Until(ctx, "a ping that only the cable delays", func() error {
		slow := timed(t, l.Host(1), to)
		if slow < 2*delay {
			t.Errorf("a ping took %s with %s each way, and %s without", slow, delay, quick)
		}
		if slow > 2*delay+500*time.Millisecond {
			return fmt.Errorf("it took %s with %s each way", slow, delay)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := l.Host(2).Delay(ctx, 0); err != nil {
		t.Fatal(err)
	}
	// With the delay in force there would be none.
	if err := lab.Until(ctx, "a ping without the delay", func() error {
		if again := timed(t, l.Host(1), to); again >= 2*delay {
			return fmt.Errorf("it takes %s after the delay's end", again)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := shared.Host(1).Delay(ctx, delay); err == nil || !strings.Contains(err.Error(), "no cable") {
		t.Errorf("a delay on a veth = %v", err)
	}
}

func timed(t *testing.T, n *lab.Node, to string) time.Duration {
	t.Helper()
	out, err := n.Run(within(t, time.Minute), "busybox", "ping", "-c", "1", "-W", "15", to)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(out), "time=")
	ms, _, _ := strings.Cut(rest, " ms")
	d, err := time.ParseDuration(ms + "ms")
	if err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	return d
}
