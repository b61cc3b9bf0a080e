package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
	"replug/tests/lab"
)

// What becomes of the connections that a VM has when it leaves is as its swap says;
// the other end is on another host. That they are reset is the default: see
// TestUnderlayOfIPv6.
func TestOldConnections(t *testing.T) {
	w := shared
	ctx := w.within(t, "draining")
	left := w.guest(ctx, t, 2, "red", true)
	w.drained(ctx, t, left)
	w.drainedInVain(ctx, t, left)
	w.silenced(ctx, t, left)
}

// drained has a swap wait for a connection: it goes on, while new ones are refused, and
// when it has ended, as its ends wanted, the swap goes on.
func (w *world) drained(ctx context.Context, t *testing.T, left *member) {
	t.Helper()
	web := w.guest(ctx, t, 1, "red", true)
	web.greets(t, 8443)
	near, far := web.connected(ctx, t, left)
	was := w.dropped(ctx, t, "draining")
	ip := w.ip()
	web.also(ctx, t, ip)
	s := web.start(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none", OldConnections: "drain", Drain: durationpb.New(patience)})
	if err := lab.Until(ctx, "a new connection to be refused", func() error {
		if got := left.hears(web.ip + ":8443"); got != "" || w.dropped(ctx, t, "draining") == was {
			return fmt.Errorf("it hears %q", got)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for i, way := range [][2]net.Conn{{near, far}, {far, near}} {
		word := fmt.Sprint("word ", i)
		got := make([]byte, len(word))
		_, err := way[0].Write([]byte(word))
		if err == nil {
			_, err = io.ReadFull(way[1], got)
		}
		if err != nil || string(got) != word {
			t.Errorf("a draining port's connection: %v, %q came, not %q", err, got, word)
		}
	}
	if s, err := pb.NewSwapsClient(w.conn).GetSwap(ctx, &pb.GetSwapRequest{Id: s.Id}); err != nil || s.Phase != "reserved" {
		t.Errorf("a swap that waits for a connection is %q, %v", s.GetPhase(), err)
	}
	far.Close()
	if _, err := near.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection's end, at the guest that leaves: %v, want io.EOF", err)
	}
	near.Close()
	w.ends(ctx, t, s.Id, "committed")
	reaches(ctx, t, w.peer(ctx, t, "blue").Node, ip)
}

// drainedInVain has a swap wait for a connection that doesn't end: both ends are reset
// when its time is up.
func (w *world) drainedInVain(ctx context.Context, t *testing.T, left *member) {
	t.Helper()
	web := w.guest(ctx, t, 1, "red", true)
	near, far := web.connected(ctx, t, left)
	web.move(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: web.ip, Trigger: "none", OldConnections: "drain", Drain: durationpb.New(time.Second)})
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection that didn't end in its time, at the far end: %v, want a reset", err)
	}
	// A host that is busy leaves it to the guest's next word: the flip doesn't wait.
	_, err := near.Write([]byte("is anybody there?"))
	if err == nil {
		_, err = near.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection that didn't end in its time, at the guest that has left: %v, want a reset", err)
	}
}

// silenced has a swap say nothing to a connection: neither end sees a reset, when the
// guest leaves or when either sends into what is no more.
func (w *world) silenced(ctx context.Context, t *testing.T, left *member) {
	t.Helper()
	web := w.guest(ctx, t, 1, "red", true)
	var taps []*lab.Recording
	for _, m := range []*member{web, left} {
		r, err := m.On().Capture(m.Tap(), filepath.Join(t.TempDir(), "tap.pcap"))
		if err != nil {
			t.Fatal(err)
		}
		taps = append(taps, r)
	}
	near, far := web.connected(ctx, t, left)
	web.move(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: web.ip, Trigger: "none", OldConnections: "silence"})
	for _, c := range []struct {
		end     string
		conn    net.Conn
		reasons []string // for which what it sends is dropped
	}{
		{"the guest that has left", near, []string{"midstream"}},
		{"the far end", far, []string{"no_mapping", "not_local"}},
	} {
		was := w.dropped(ctx, t, c.reasons...)
		if _, err := c.conn.Write([]byte("is anybody there?")); err != nil {
			t.Errorf("%s, when it sends: %v", c.end, err)
		}
		if err := lab.Until(ctx, "what "+c.end+" sends, twice", func() error {
			if n := w.dropped(ctx, t, c.reasons...) - was; n < 2 && idle(c.conn) == nil {
				return fmt.Errorf("%v frames of it were dropped", n)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(idle(near), idle(far)); err != nil {
		t.Errorf("the silenced connection has ended: %v", err)
	}
	for _, tap := range taps {
		if err := tap.Stop(); err != nil {
			t.Fatal(err)
		}
		segments, resets := countTCP(t, tap.File(), oldPort)
		if segments < 4 || resets > 0 {
			t.Errorf("of %d segments of the silenced connection %d are resets", segments, resets)
		}
	}
}

// idle returns why nothing can be read from a connection but that nothing came.
func idle(c net.Conn) error {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// oldPort is where connections lead that a swap will meet.
const oldPort = 7917

// connected returns the ends of a new connection to the guest: its own, and the one of
// the guest from. Reads end with ctx.
func (m *member) connected(ctx context.Context, t *testing.T, from *member) (near, far net.Conn) {
	t.Helper()
	var l net.Listener
	addr := fmt.Sprint(m.ip, ":", oldPort)
	if err := m.Do(func() (err error) { l, err = net.Listen("tcp4", addr); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := from.Do(func() (err error) { far, err = (&net.Dialer{}).DialContext(ctx, "tcp4", addr); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	near, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	if end, ok := ctx.Deadline(); ok {
		_, _ = near.SetDeadline(end), far.SetDeadline(end)
	}
	return near, far
}

// countTCP counts the segments over IPv4 from or to a port in a recording.
func countTCP(t *testing.T, file string, port int) (segments, resets int) {
	t.Helper()
	frames, err := lab.ReadPcap(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		b := f.Data
		if len(b) < 54 || b[12] != 8 || b[13] != 0 || b[14] != 0x45 || b[23] != syscall.IPPROTO_TCP {
			continue
		}
		if from, to := int(b[34])<<8|int(b[35]), int(b[36])<<8|int(b[37]); from != port && to != port {
			continue
		}
		if segments++; b[47]&4 != 0 {
			resets++
		}
	}
	return segments, resets
}
