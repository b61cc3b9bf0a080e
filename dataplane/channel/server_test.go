package channel

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"replug/directory/vnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const wait = 5 * time.Second

// A guest is the far end of a socket: what QEMU and the agent are.
type guest struct {
	t    *testing.T
	l    net.Listener
	conn net.Conn
	in   *bufio.Scanner
}

type world struct {
	*Server
	t       *testing.T
	mu      sync.Mutex
	reports []vnet.GuestReport
	refused []string
	told    chan string // each of them, too
	came    chan struct{}
	busy    bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, told: make(chan string, 64), came: make(chan struct{}, 64)}
	w.Server = New(Config{
		OnReport: func(_ context.Context, id vnet.PortID, r vnet.GuestReport) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.busy {
				return errors.New("busy")
			}
			r.BootID = map[vnet.PortID]string{23: "of 23", 41: "of 41"}[id]
			w.reports = append(w.reports, r)
			return nil
		},
		OnHello: func(vnet.PortID) { w.came <- struct{}{} },
		Refused: func(_ vnet.PortID, reason string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.refused = append(w.refused, reason)
			w.told <- reason
		},
	})
	t.Cleanup(func() { w.Shut() })
	return w
}

// guest makes the machine of a port and waits for the host to come.
func (w *world) guest(id vnet.PortID) *guest {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "guest.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		w.t.Fatal(err)
	}
	g := &guest{t: w.t, l: l}
	w.Open(id, path)
	w.Open(id, path)
	g.accept()
	w.t.Cleanup(func() { g.conn.Close(); l.Close() })
	return g
}

func (g *guest) accept() {
	g.t.Helper()
	var err error
	if g.conn, err = g.l.Accept(); err != nil {
		g.t.Fatal(err)
	}
	g.conn.SetDeadline(time.Now().Add(3 * wait))
	g.in = bufio.NewScanner(g.conn)
	g.in.Buffer(nil, vnet.MaxToGuest)
	if m := g.hear(); !m.Ping {
		g.t.Fatalf("first message %+v, want a ping", m)
	}
}

func (g *guest) hear() (m vnet.ToGuest) {
	g.t.Helper()
	if !g.in.Scan() {
		g.t.Fatalf("the host has hung up: %v", g.in.Err())
	}
	if err := json.Unmarshal(g.in.Bytes(), &m); err != nil {
		g.t.Fatal(err)
	}
	return m
}

func (g *guest) say(m vnet.FromGuest) {
	g.t.Helper()
	b, err := json.Marshal(m)
	if err == nil {
		_, err = g.conn.Write(append(b, '\n'))
	}
	if err != nil {
		g.t.Fatal(err)
	}
}

var doc = &vnet.Document{Instance: "vm-93", Hostname: "web-1"}

func report(counter uint64, kind string) vnet.FromGuest {
	return vnet.FromGuest{Report: &vnet.GuestReport{Epoch: vnet.NewEpoch(3, counter), Kind: kind, OK: true}}
}

// A machine that was off for long is dialled as soon as it is said to be on, however
// long the host would have waited, and the agent in it is heard of at once.
func TestDialledAtOnce(t *testing.T) {
	w := newWorld(t)
	w.retry = time.Hour
	g := w.guest(23)
	for range 2 {
		g.conn.Close()
		w.Open(23, g.l.Addr().String())
		if err := g.l.(*net.UnixListener).SetDeadline(time.Now().Add(wait)); err != nil {
			t.Fatal(err)
		}
		g.accept()
	}
	g.say(vnet.FromGuest{Hello: "ab"})
	select {
	case <-w.came:
	case <-time.After(wait):
		t.Error("nobody was told that an agent has come")
	}
}

// A guest is told its own document and news, by what it said last, and its reports
// count for the port of its socket, whatever they say.
func TestConversation(t *testing.T) {
	w := newWorld(t)
	g := w.guest(23)
	w.Publish(23, vnet.NewEpoch(3, 7), doc)
	w.Publish(41, vnet.NewEpoch(3, 9), &vnet.Document{Hostname: "secret"})
	if w.Listens(23) || w.Moved(23, vnet.Moved{Epoch: vnet.NewEpoch(3, 8)}) {
		t.Error("somebody listens before its hello")
	}
	g.say(vnet.FromGuest{Hello: "first"})
	if m := g.hear(); m.To != "first" || m.Config == nil || m.Config.Hostname != "web-1" || m.Config.Epoch != vnet.NewEpoch(3, 7) {
		t.Fatalf("document %+v", m)
	}
	g.say(report(7, vnet.ReportFinal))
	if m := g.hear(); m.Answer == nil || m.Answer.Error != "" || m.Answer.Epoch != vnet.NewEpoch(3, 7) {
		t.Fatalf("answer %+v", m.Answer)
	}
	if len(w.reports) != 1 || w.reports[0].BootID != "of 23" || w.reports[0].At.IsZero() {
		t.Errorf("reports %+v", w.reports)
	}
	news := vnet.Moved{Epoch: vnet.NewEpoch(3, 8), Addrs: []netip.Prefix{netip.MustParsePrefix("10.20.0.9/16")}}
	if !w.Listens(23) || !w.Moved(23, news) || w.Moved(23, vnet.Moved{Epoch: vnet.NewEpoch(3, 6)}) {
		t.Error("news are not taken, or older ones are")
	}
	if m := g.hear(); m.Moved == nil || m.Moved.Epoch != news.Epoch || len(m.Moved.Addrs) != 1 {
		t.Errorf("news %+v", m)
	}
	g.say(vnet.FromGuest{Hello: "second"}) // an agent that was started again is told again
	if m := g.hear(); m.To != "second" || m.Config == nil {
		t.Errorf("after the second hello %+v", m)
	}
	w.Withdraw(23)
	w.Publish(23, vnet.NewEpoch(3, 7), &vnet.Document{Hostname: "late"})
	w.Publish(23, vnet.NewEpoch(3, 8), &vnet.Document{Hostname: "web-2"})
	if m := g.hear(); m.Config == nil || m.Config.Hostname != "web-2" {
		t.Errorf("after the flip %+v", m.Config)
	}
}

// Reports on another epoch, of another kind, or while the port is busy, are answered
// and not taken.
func TestReportsRefused(t *testing.T) {
	w := newWorld(t)
	g := w.guest(23)
	g.say(vnet.FromGuest{Hello: "h"})
	g.say(report(7, vnet.ReportPartial)) // the host agent has just started
	if m := g.hear(); m.Answer == nil || m.Answer.Error != "nothing published yet" || !m.Answer.Again {
		t.Errorf("before a document: answer %+v", m.Answer)
	}
	w.Publish(23, vnet.NewEpoch(3, 7), &vnet.Document{Tag: vnet.TagPartial})
	g.hear()
	for _, c := range []struct {
		say   vnet.FromGuest
		busy  bool
		why   string
		again bool
	}{
		{report(6, vnet.ReportPartial), false, "report on another epoch", false},
		{report(7, vnet.ReportFinal), false, "kind is not the document's", false},
		{report(7, "all"), false, "kind is not the document's", false},
		{report(7, vnet.ReportPartial), true, "report not taken", true},
	} {
		w.mu.Lock()
		w.busy = c.busy
		w.mu.Unlock()
		g.say(c.say)
		if m := g.hear(); m.Answer == nil || m.Answer.Error != c.why || m.Answer.Again != c.again {
			t.Errorf("%+v: answer %+v", c.say.Report, m.Answer)
		}
	}
	if len(w.reports) != 0 || len(w.refused) != 5 {
		t.Errorf("taken %v, refused %q", w.reports, w.refused)
	}
}

// A guest that says too much, too fast, or nonsense, is left alone for a while, and
// costs the host nothing in between.
func TestHostileGuest(t *testing.T) {
	for name, c := range map[string]struct{ says, why string }{
		"long":     {strings.Repeat("a", vnet.MaxFromGuest+9), errLong.Error()},
		"nonsense": {"hello?\n", errSpeech.Error()},
		"fast":     {strings.Repeat("{}\n", rateBurst+2), errFast.Error()},
	} {
		w := newWorld(t)
		g := w.guest(23)
		w.Publish(23, vnet.NewEpoch(3, 7), doc)
		g.conn.Write([]byte(c.says))
		for g.in.Scan() {
		}
		select {
		case got := <-w.told:
			if got != c.why || len(w.told) > 0 {
				t.Errorf("%s: refused %q and %d more, want %q", name, got, len(w.told), c.why)
			}
		case <-time.After(wait):
			t.Fatalf("%s: nothing was refused, want %q", name, c.why)
		}
	}
}

// The host finds a machine that was started again, and forgets one that is gone.
func TestMachineComesAgain(t *testing.T) {
	w := newWorld(t)
	g := w.guest(23)
	w.Publish(23, vnet.NewEpoch(3, 7), doc)
	g.say(vnet.FromGuest{Hello: "before"})
	g.hear()
	g.conn.Close()
	g.accept()
	if w.Listens(23) {
		t.Error("a machine that is gone listens")
	}
	g.say(vnet.FromGuest{Hello: "after"})
	if m := g.hear(); m.To != "after" || m.Config == nil {
		t.Errorf("told %+v", m)
	}
	w.Forget(23)
	if g.in.Scan() {
		t.Errorf("told after the end: %s", g.in.Text())
	}
	w.Publish(23, vnet.NewEpoch(1, 2), doc) // of another port of this number
	w.Forget(23)
}
