package dataplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/ask"
	"replug/directory/frame"
	"replug/directory/vnet"
)

// within ends before the test hangs.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// asked puts a question and collects the answers.
func asked[A any](t *testing.T, ctx context.Context, d *diagnosis, kind string, q any, each func(A)) error {
	t.Helper()
	b, err := json.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	return d.answer(ctx, kind, b, func(b []byte) error {
		var a A
		if err := json.Unmarshal(b, &a); err != nil {
			t.Errorf("answer %q: %v", b, err)
		}
		each(a)
		return nil
	})
}

func TestTraceNames(t *testing.T) {
	d, w, _ := newDiagnosed()
	w.traced = Traced{Verdict: ask.ToPort, To: 45, RuleOut: RuleDefault, RuleIn: 77, FlowOut: "new", FlowIn: "new", Ifindex: 9, Frame: []byte{1, 2}}
	q := ask.TraceFromVM{Port: "acme.web-1", Spec: frame.Spec{Dst: netip.MustParseAddr("10.17.34.85"), Protocol: vnet.TCP, SrcPort: 50123, DstPort: 443}}
	var got ask.Trace
	if err := asked(t, t.Context(), d, ask.KindTraceFromVM, q, func(a ask.Trace) { got = a }); err != nil {
		t.Fatal(err)
	}
	words := frame.Words(w.sent)
	want := []string{"Ethernet 02:52:00:00:17:00 > 02:52:50:4c:47:57", "IPv4 10.17.34.51 > 10.17.34.85, 40 bytes, TTL 64, don't fragment", "TCP 50123 > 443 []"}
	if !slices.Equal(words, want) {
		t.Errorf("sent %q,\nwant %q: the address of the destination's subnet, the gateway's MAC", words, want)
	}
	if got.Port.Name != "acme.web-1" || got.To != (ask.PortRef{Name: "acme.db-1", ID: 45, Network: "red", VNI: 0xa1b2c3, Tenant: "acme"}) ||
		got.RuleIn != (ask.Decision{Rule: "web/https", Says: "allowed by web/https", Flow: "new"}) || !strings.Contains(got.RuleOut.Says, "no rule denies") || got.Device != "dev9" || !bytes.Equal(got.Sent, w.sent) {
		t.Errorf("got %+v", got)
	}
	q.Spec.Dst, q.Spec.Protocol = netip.MustParseAddr("2001:db8::9"), vnet.ICMP
	w.traced = Traced{Verdict: ask.Dropped, Drop: "no_route", RuleOut: RuleUnasked, RuleIn: RuleUnasked}
	if err := asked(t, t.Context(), d, ask.KindTraceFromVM, q, func(a ask.Trace) { got = a }); err != nil {
		t.Fatal(err)
	}
	if tuple, _ := frame.TupleOf(w.sent); tuple.String() != "icmpv6 fd17:3::33 > 2001:db8::9" || got.Why != "text of no_route" || got.RuleOut != (ask.Decision{}) {
		t.Errorf("sent %s, got %+v", tuple, got)
	}
	q.Port = "acme.web-9"
	if err := asked(t, t.Context(), d, ask.KindTraceFromVM, q, func(ask.Trace) {}); err == nil || !strings.Contains(err.Error(), "acme.web-9") {
		t.Errorf("a port that isn't here: %v", err)
	}
	wire := vxlan(w.sent)
	if err := asked(t, t.Context(), d, ask.KindTraceFromWire, ask.TraceFromWire{Frame: wire}, func(a ask.Trace) { got = a }); err != nil || frame.Words(got.Sent)[0] != "Ethernet 02:aa:bb:cc:dd:02 > 02:ee:01:02:03:04" || !bytes.Equal(w.sent[6:], wire[6:]) {
		t.Errorf("from the wire, by way of a router: %v, %q", err, frame.Words(got.Sent))
	}
	if err := asked(t, t.Context(), d, "horoscope", q, func(ask.Trace) {}); !errors.Is(err, errQuestion) {
		t.Errorf("a question of a later server: %v", err)
	}
}

func vxlan(inner []byte) []byte {
	udp := append([]byte{0xc1, 0x23, 0x12, 0xb5, 0, byte(16 + len(inner)), 0, 0, 8, 0, 0, 0, 0xa1, 0xb2, 0xc3, 0}, inner...)
	ip := []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0x40, 0, 64, 17, 0, 0, 100, 64, 7, 23, 100, 64, 9, 41}
	return slices.Concat([]byte{2, 0xaa, 0xbb, 0xcc, 0xdd, 1, 2, 0xaa, 0xbb, 0xcc, 0xdd, 2, 8, 0}, ip, udp)
}

func inner(t *testing.T, src, dst string) []byte {
	t.Helper()
	b, err := frame.Compose(frame.Spec{SrcMAC: vnet.PortMAC(9), DstMAC: vnet.GatewayMAC, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst),
		Protocol: vnet.TCP, SrcPort: 50123, DstPort: 443, Flags: 2})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A capture is a file that tshark opens: points by name, reasons as comments, no
// more frames than asked for; and it is paid for only while somebody looks.
func TestCapture(t *testing.T) {
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Fatalf("%v: make setup-test installs it", err)
	}
	for name, c := range map[string]struct {
		q    ask.Capture
		want []string
	}{
		"operator": {ask.Capture{Port: "acme.web-1", Count: 3}, []string{
			"from_vm\t54\t10.17.34.51\t", "to_wire\t104\t100.64.7.23,10.17.34.51\t", "drop\t1454\t10.17.34.51\tno_mapping: text of no_mapping"}},
		"tenant": {ask.Capture{Port: "acme.web-1", Count: 3, Inner: true}, []string{
			"from_vm\t54\t10.17.34.51\t", "to_wire\t54\t10.17.34.51\t", "drop\t1454\t10.17.34.51\tno_mapping: text of no_mapping"}},
		"two points": {ask.Capture{Port: "acme.web-1", Count: 2, Points: []ask.Point{ask.PointDrop, ask.PointToWire}, Snap: 60}, []string{
			"to_wire\t104\t100.64.7.23\t", "drop\t1454\t10.17.34.51\tno_mapping: text of no_mapping"}},
	} {
		d, w, _ := newDiagnosed()
		var file []byte
		begun, done := make(chan struct{}, 100), make(chan error, 1)
		var last ask.Captured
		go func() {
			done <- asked(t, within(t), d, ask.KindCapture, c.q, func(a ask.Captured) {
				file, last = append(file, a.Data...), a
				begun <- struct{}{}
			})
		}()
		<-begun
		sent := inner(t, "10.17.34.51", "10.17.34.85")
		now := 100 * time.Second
		w.copy(Copy{Port: 45, Point: ask.PointFromVM, Now: now, Length: 54, Frame: sent}) // another port's
		for _, f := range []Copy{
			{Point: ask.PointFromVM, Length: 54, Frame: sent}, {Point: ask.PointToWire, Length: 104, Frame: vxlan(sent)},
			{Point: ask.PointDrop, Drop: "no_mapping", Length: 1454, Frame: sent},
		} {
			f.Port, f.Now, f.At = 23, now, now-time.Millisecond
			w.copy(f)
		}
		if err := <-done; err != nil || last.Frames != uint64(c.q.Count) || last.Lost != 0 {
			t.Errorf("%s: %v, %+v", name, err, last)
		}
		path := filepath.Join(t.TempDir(), "a.pcapng")
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("tshark", "-r", path, "-n", "-T", "fields", "-e", "frame.interface_name", "-e", "frame.len", "-e", "ip.src", "-e", "frame.comment").Output()
		if got := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v\ngot  %q\nwant %q", name, err, got, c.want)
		}
		if calls := w.log(); !slices.Equal(calls, []string{"read", "captured 23 true", "captured 23 false"}) {
			t.Errorf("%s: the datapath was asked %q", name, calls)
		}
	}
}

// Who is too slow loses frames, and both the file and the answer say how many.
func TestCaptureLoses(t *testing.T) {
	d, w, _ := newDiagnosed()
	ctx, cancel := context.WithCancel(within(t))
	begun, slow, done := make(chan struct{}, 1000), make(chan struct{}), make(chan error, 1)
	var last ask.Captured
	var file []byte
	go func() {
		done <- asked(t, ctx, d, ask.KindCapture, ask.Capture{Port: "acme.web-1"}, func(a ask.Captured) {
			begun <- struct{}{}
			<-slow
			last, file = a, append(file, a.Data...)
			if a.Frames+a.Lost == 5000+7 {
				cancel()
			}
		})
	}()
	<-begun
	sent := inner(t, "10.17.34.51", "10.17.34.85")
	for range 5000 {
		w.copy(Copy{Port: 23, Point: ask.PointFromVM, Length: 54, Frame: sent})
	}
	w.mu.Lock()
	w.lost = 7 // in the ring
	w.mu.Unlock()
	close(slow)
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if last.Frames != waiting || last.Lost != 5000-waiting+7 {
		t.Errorf("%d frames, %d lost, of 5000 and 7 in the ring", last.Frames, last.Lost)
	}
	path := filepath.Join(t.TempDir(), "a.pcapng")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("capinfos", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), fmt.Sprintf("Number of packets:   %d", waiting)) {
		t.Errorf("capinfos: %v\n%s", err, out)
	}
}

// Of a port that is deleted, and whose number another tenant's port gets, nothing
// that was taken after that leaves the host.
func TestCaptureEndsWithPort(t *testing.T) {
	d, w, h := newDiagnosed()
	begun, done := make(chan struct{}, 100), make(chan error, 1)
	var file []byte
	go func() {
		done <- asked(t, within(t), d, ask.KindCapture, ask.Capture{Port: "acme.web-1"}, func(a ask.Captured) {
			file = append(file, a.Data...)
			begun <- struct{}{}
		})
	}()
	<-begun
	h.remove(h.named("acme.web-1"))
	h.add("rival.web-1", 23, "rival")
	secret := inner(t, "10.66.66.66", "10.66.66.67")
	w.copy(Copy{Port: 23, Point: ask.PointFromVM, Length: 54, Frame: secret})
	if err := <-done; !errors.Is(err, errLeft) {
		t.Errorf("the port is gone: %v", err)
	}
	if bytes.Contains(file, secret) {
		t.Error("a frame of another tenant left the host")
	}
	if calls := w.log(); !slices.Contains(calls, "captured 23 false") {
		t.Errorf("the datapath was asked %q", calls)
	}
}

func TestDrops(t *testing.T) {
	for name, c := range map[string]struct {
		ports  []string
		want   []string
		totals int
	}{
		"operator": {nil, []string{
			"2 spoofed_ca acme.web-1 tcp 10.17.34.51:50123 > 10.17.34.85:443",
			"1 not_local  tcp 10.17.34.51:50123 > 10.17.34.85:443 in VNI 10597059, 100.64.7.23 > 100.64.9.41",
			"1 vlan acme.db-1 Ethernet 02:52:00:00:00:09 > 02:52:50:4c:47:57, IPv4: cut off after 6 bytes"}, 2},
		"tenant": {[]string{"acme.web-1"}, []string{"2 spoofed_ca acme.web-1 tcp 10.17.34.51:50123 > 10.17.34.85:443"}, 0},
		"the one that would get it": {[]string{"acme.db-1"}, []string{"1 rule_in acme.db-1 tcp 10.17.34.51:50123 > 10.17.34.85:443",
			"1 vlan acme.db-1 Ethernet 02:52:00:00:00:09 > 02:52:50:4c:47:57, IPv4: cut off after 6 bytes"}, 0},
		"both": {[]string{"acme.web-1", "acme.db-1"}, []string{"2 spoofed_ca acme.web-1 tcp 10.17.34.51:50123 > 10.17.34.85:443",
			"1 vlan acme.db-1 Ethernet 02:52:00:00:00:09 > 02:52:50:4c:47:57, IPv4: cut off after 6 bytes"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, w, _ := newDiagnosed()
				done := make(chan error, 1)
				var got ask.Refused
				go func() {
					done <- asked(t, within(t), d, ask.KindDrops, ask.Drops{Ports: c.ports, Every: 300 * time.Millisecond}, func(a ask.Refused) { got = a })
				}()
				w.until("watch true")
				sent := inner(t, "10.17.34.51", "10.17.34.85")
				w.copy(Copy{Port: 23, Point: ask.PointFromVM, Frame: sent})
				w.copy(Copy{Port: 23, Point: ask.PointDrop, Drop: "spoofed_ca", Frame: sent})
				w.copy(Copy{Port: 23, Point: ask.PointDrop, Drop: "spoofed_ca", Frame: sent})
				w.copy(Copy{Port: 0, Point: ask.PointDrop, Drop: "not_local", Frame: vxlan(sent)})
				w.copy(Copy{Port: 45, Point: ask.PointDrop, Drop: "vlan", Frame: sent[:20]})
				w.copy(Copy{Port: 45, Point: ask.PointDrop, Drop: "rule_in", Frame: sent, Sender: 23}) // of one more that 23 has sent
				if err := <-done; err != nil {
					t.Errorf("%s: %v", name, err)
				}
				var rows []string
				for _, r := range got.Rows {
					rows = append(rows, fmt.Sprintf("%d %s %s %s", r.Count, r.Reason, r.Port.Name, r.Tuple))
				}
				if !slices.Equal(rows, c.want) || len(got.Totals) != c.totals || got.Lost != 0 {
					t.Errorf("%s: %+v\ngot  %q\nwant %q", name, got, rows, c.want)
				}
				if calls := w.log(); calls[len(calls)-1] != "watch false" {
					t.Errorf("%s: the datapath was asked %q", name, calls)
				}
			})
		})
	}
}

// Two who look at one port share the copies; the last one ends them.
func TestCopiesShared(t *testing.T) {
	w := &fakeWitness{}
	c := newCopies(w, slog.New(slog.DiscardHandler))
	all := func(*Copy) bool { return true }
	var looks []*look
	for range 2 {
		for _, port := range []vnet.PortID{23, 0} {
			l, err := c.open(port, all)
			if err != nil {
				t.Fatal(err)
			}
			looks = append(looks, l)
		}
	}
	for _, l := range looks {
		c.close(l)
	}
	want := []string{"read", "captured 23 true", "watch true", "captured 23 false", "watch false"}
	if got := w.log(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	l, err := c.open(45, all)
	if err != nil {
		t.Fatal(err)
	}
	w.copy(Copy{Port: 45})
	w.copy(Copy{Port: 45, Sender: 23})
	if len(l.frames) != 2 {
		t.Error("nothing is copied when somebody looks again")
	}
	c.close(l)
}

func TestFlowsInParts(t *testing.T) {
	d, w, _ := newDiagnosed()
	for n := range 450 {
		w.flows = append(w.flows, ask.Flow{Protocol: vnet.TCP, Packets: uint64(n), Local: netip.MustParseAddrPort("10.17.34.51:443"), Remote: netip.MustParseAddrPort("10.17.34.85:50123")})
	}
	var parts []int
	n := uint64(0)
	err := asked(t, t.Context(), d, ask.KindFlows, ask.Flows{Port: "acme.web-1"}, func(a []ask.Flow) {
		parts = append(parts, len(a))
		for _, f := range a {
			if f.Packets != n {
				t.Errorf("flow %d came as number %d", f.Packets, n)
			}
			n++
		}
	})
	if err != nil || !slices.Equal(parts, []int{200, 200, 50}) {
		t.Errorf("%v, %v", parts, err)
	}
}

// Of some ports that are asked about those in force are told of: never all of the
// host's. One that comes into force ends the answer, so that it is asked about.
func TestDropsOfSome(t *testing.T) {
	for name, c := range map[string]struct {
		ports []string
		want  uint64
	}{"one of two": {[]string{"acme.web-1", "acme.late"}, 1}, "none yet": {[]string{"acme.late"}, 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, w, _ := newDiagnosed()
				done := make(chan error, 1)
				begin := func(follow bool, take func(ask.Refused)) {
					go func() {
						done <- asked(t, within(t), d, ask.KindDrops, ask.Drops{Ports: c.ports, Every: 300 * time.Millisecond, Some: true, Follow: follow}, take)
					}()
				}
				var got ask.Refused
				take := func(a ask.Refused) { got = a }
				begin(false, take)
				w.until("watch true")
				sent := inner(t, "10.17.34.51", "10.17.34.85")
				w.copy(Copy{Port: 23, Point: ask.PointDrop, Drop: "spoofed_ca", Frame: sent})
				w.copy(Copy{Port: 45, Point: ask.PointDrop, Drop: "vlan", Frame: sent}) // of neither
				w.copy(Copy{Port: 0, Point: ask.PointDrop, Drop: "not_local", Frame: vxlan(sent)})
				if err := <-done; err != nil {
					t.Errorf("%s: %v", name, err)
				}
				n := uint64(0)
				for _, r := range got.Rows {
					n += r.Count
				}
				if n != c.want || got.Totals != nil {
					t.Errorf("%s: %+v", name, got)
				}
				var h *fakeHouse
				d, w, h = newDiagnosed()
				begin(true, take)
				w.until("watch true")
				h.add("acme.late", 61, "acme")
				if err := <-done; err == nil || !strings.Contains(err.Error(), "acme.late") {
					t.Errorf("%s: a port has come into force: %v", name, err)
				}
			})
		})
	}
}
