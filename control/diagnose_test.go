package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
	"replug/directory/ask"
	"replug/directory/frame"
	"replug/directory/vnet"
)

// answering makes a host's answers of functions of the question, by kind.
func answering(answers map[string]func(ctx context.Context, payload []byte, say func(any)) error) manners {
	return manners{answer: func(ctx context.Context, kind string, payload []byte, say func([]byte) error) error {
		f := answers[kind]
		if f == nil {
			return fmt.Errorf("unexpected question %s", kind)
		}
		return f(ctx, payload, func(v any) {
			b, err := json.Marshal(v)
			if err == nil {
				_ = say(b) // fails when nobody listens any more
			}
		})
	}}
}

// traced is a world of two hosts: web-1 on h7 sends, db-1 on h9 gets.
func traced(t *testing.T) (w *world, web, db *fakeHost, wire []byte) {
	w = newWorld(t, nil)
	w.furnish()
	web = w.host("h7", 7)
	must(w.as("olga").CreateVM(w.ctx, &pb.CreateVMRequest{RequestId: "a", Tenant: "acme", Name: "web-1", Type: "tiny", Network: "red", Ip: "10.17.34.51", Host: "h7"}))(t)
	db = w.host("h9", 9)
	must(w.as("olga").CreateVM(w.ctx, &pb.CreateVMRequest{RequestId: "b", Tenant: "acme", Name: "db-1", Type: "tiny", Network: "red", Ip: "10.17.34.85", Host: "h9"}))(t)
	w.inPhase("web-1", "ready")
	w.inPhase("db-1", "ready")
	inner, err := frame.Compose(frame.Spec{Src: netip.MustParseAddr("10.17.34.51"), Dst: netip.MustParseAddr("10.17.34.85"), Protocol: vnet.TCP, SrcPort: 50123, DstPort: 443, Flags: 2})
	if err != nil {
		t.Fatal(err)
	}
	outer, err := frame.Compose(frame.Spec{Src: netip.MustParseAddr("100.64.7.3"), Dst: netip.MustParseAddr("100.64.9.3"), Protocol: vnet.UDP, SrcPort: 49443, DstPort: 4789, Size: 36 + len(inner)})
	if err != nil {
		t.Fatal(err)
	}
	copy(outer[42:], append([]byte{8, 0, 0, 0, 0xa1, 0xb2, 0xc3, 0}, inner...))
	return w, web, db, outer
}

func TestTrace(t *testing.T) {
	w, web, db, wire := traced(t)
	var question ask.TraceFromVM
	toWire := ask.Trace{Verdict: ask.ToWire, RuleOut: ask.Decision{Says: "allowed: no rule denies it", Flow: "new"}, Route: netip.MustParsePrefix("10.17.34.0/24"),
		Mapping: &ask.Mapping{VNI: 0xa1b2c3, PA: netip.MustParseAddr("100.64.9.3"), MAC: vnet.PortMAC(7)}, Device: "up0", Sent: wire[50:], Frame: wire}
	web.behave(answering(map[string]func(context.Context, []byte, func(any)) error{
		ask.KindTraceFromVM: func(_ context.Context, b []byte, say func(any)) error {
			_ = json.Unmarshal(b, &question)
			a := toWire
			a.Port = ask.PortRef{Name: question.Port, Network: "red", VNI: 0xa1b2c3, Tenant: "acme"}
			say(a)
			return nil
		}}))
	var got ask.TraceFromWire
	db.behave(answering(map[string]func(context.Context, []byte, func(any)) error{
		ask.KindTraceFromWire: func(_ context.Context, b []byte, say func(any)) error {
			_ = json.Unmarshal(b, &got)
			say(ask.Trace{Verdict: ask.Dropped, Drop: "rule_in", Why: "a rule denies what the VM would get", Sent: got.Frame,
				To: ask.PortRef{Name: "db.0", Network: "red", VNI: 0xa1b2c3, Tenant: "acme"}, RuleIn: ask.Decision{Rule: "db/no-web", Says: "denied by db/no-web"}})
			return nil
		}}))
	q := &pb.TraceRequest{Tenant: "acme", From: "web-1", To: "db-1", Protocol: "tcp", Port: 443, Size: 99}
	r := must(w.as("olga").Trace(w.ctx, q))(t)
	if question.Spec.Dst.String() != "10.17.34.85" || question.Spec.SrcPort != tracePort || question.Spec.Flags != 2 || question.Spec.Size != 99 {
		t.Errorf("the first host is asked %+v", question)
	}
	if string(got.Frame) != string(wire) {
		t.Error("the second host doesn't get what the first one sends")
	}
	if r.Delivered || r.Summary != "dropped: rule_in (a rule denies what the VM would get), on host h9" || len(r.Hops) != 2 {
		t.Errorf("%v %q, %d hops", r.Delivered, r.Summary, len(r.Hops))
	}
	want := []string{"port: from web-1 (" + question.Port + ") in network red (VNI 10597059)", "rules out: allowed: no rule denies it (new flow)", "route: 10.17.34.0/24, on link",
		"mapping: PA 100.64.9.3, MAC 02:52:00:00:00:07, VNI 10597059", "verdict: sent to the underlay by up0",
		"port: for db.0 in network red (VNI 10597059)", "rules in: denied by db/no-web", "verdict: dropped: rule_in (a rule denies what the VM would get)"}
	if got := stepsOf(r); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	// The tenant sees the same way, and nothing of the underlay.
	q.Tenant = ""
	r = must(w.as("acme").Trace(w.ctx, q))(t)
	for _, h := range r.Hops {
		if strings.Contains(fmt.Sprint(h), "100.64.") || strings.Contains(fmt.Sprint(h), "up0") || string(h.Sent) == string(wire) || string(h.Frame) == string(wire) {
			t.Errorf("the tenant sees the underlay: %v", h)
		}
	}
	if len(r.Hops) != 2 || string(r.Hops[0].Frame) != string(wire[50:]) || r.Hops[1].Drop != "rule_in" {
		t.Errorf("the tenant sees %v", r)
	}
	// Only what a port gets has left its outer headers behind.
	for _, c := range []struct {
		verdict string
		leaves  []byte
	}{{ask.SentUp, wire}, {ask.Passed, wire}, {ask.Dropped, wire}, {ask.ToPort, wire[50:]}} {
		db.behave(answering(map[string]func(context.Context, []byte, func(any)) error{
			ask.KindTraceFromWire: func(_ context.Context, b []byte, say func(any)) error {
				say(ask.Trace{Verdict: c.verdict, Sent: wire, Frame: c.leaves, To: ask.PortRef{Name: "db.0", Network: "red", VNI: 0xa1b2c3, Tenant: "acme"}})
				return nil
			}}))
		r := must(w.as("acme").Trace(w.ctx, q))(t)
		if h := r.Hops[1]; h.Verdict != c.verdict || string(h.Sent) != string(wire[50:]) || string(h.Frame) != string(wire[50:]) {
			t.Errorf("%s: the tenant sees %x, was %x; want the inner frame", c.verdict, h.Frame, h.Sent)
		}
	}
	_, err := w.as("umbra").Trace(w.ctx, &pb.TraceRequest{From: "web-1", To: "10.17.34.85", Protocol: "tcp", Port: 443})
	code(t, "another tenant's VM", err, codes.NotFound, "web-1")
	_, err = w.as("umbra").Trace(w.ctx, &pb.TraceRequest{Tenant: "acme", From: "web-1", To: "10.17.34.85", Protocol: "tcp", Port: 443})
	code(t, "for another tenant", err, codes.PermissionDenied)
}

func stepsOf(r *pb.TraceResponse) (out []string) {
	for _, h := range r.Hops {
		for _, s := range h.Steps {
			out = append(out, s.Stage+": "+s.Says)
		}
	}
	return out
}

// A trace whose second host can't be asked says how far the frame came; so does
// one to a VTEP.
func TestTraceEnds(t *testing.T) {
	w, web, db, wire := traced(t)
	pa := "100.64.9.3"
	web.behave(answering(map[string]func(context.Context, []byte, func(any)) error{
		ask.KindTraceFromVM: func(_ context.Context, _ []byte, say func(any)) error {
			say(ask.Trace{Verdict: ask.ToWire, Mapping: &ask.Mapping{VNI: 5, PA: netip.MustParseAddr(pa)}, Frame: wire})
			return nil
		}}))
	q := &pb.TraceRequest{Tenant: "acme", From: "web-1", To: "10.17.34.85"}
	r := must(w.as("olga").Trace(w.ctx, q))(t)
	if r.Delivered || !strings.Contains(r.Summary, "h9") || !strings.Contains(r.Summary, "no answer today") {
		t.Errorf("a host that refuses: %q", r.Summary)
	}
	db.halt()
	w.wait("h9 gone", func() error {
		if here, _ := w.srv.up.get("h9"); here {
			return errors.New("here")
		}
		return nil
	})
	r = must(w.as("olga").Trace(w.ctx, q))(t)
	if r.Delivered || !strings.Contains(r.Summary, "h9") || !strings.Contains(r.Summary, "not connected") {
		t.Errorf("a host that is gone: %q", r.Summary)
	}
	pa = "192.0.2.9"
	r = must(w.as("olga").Trace(w.ctx, q))(t)
	if !r.Delivered || !strings.Contains(r.Summary, "192.0.2.9") || !strings.Contains(r.Summary, "VTEP") {
		t.Errorf("a VTEP: %q", r.Summary)
	}
	_, err := w.as("olga").Trace(w.ctx, &pb.TraceRequest{Tenant: "acme", From: "db-1", To: "10.17.34.51"})
	code(t, "the first host is gone", err, codes.FailedPrecondition, "h9", "not connected")
	for _, bad := range []*pb.TraceRequest{
		{From: "web-1", To: "10.17.34.85", Protocol: "tcp"}, {From: "web-1", To: "10.17.34.85", Protocol: "icmp", Port: 7}, {From: "web-1", To: "10.17.34.85", Protocol: "wifi"},
		{From: "web-1", To: "10.17.34.85", Protocol: "tcp", Port: 443, Flags: "xmas"}, {From: "web-1", FromIp: "10.17", To: "10.17.34.85"},
	} {
		bad.Tenant = "acme"
		_, err := w.as("olga").Trace(w.ctx, bad)
		code(t, fmt.Sprint(bad), err, codes.InvalidArgument)
	}
}

func TestCaptureCall(t *testing.T) {
	w, web, _, _ := traced(t)
	questions := make(chan ask.Capture, 10)
	ended := make(chan error, 10)
	web.behave(answering(map[string]func(context.Context, []byte, func(any)) error{
		ask.KindCapture: func(ctx context.Context, b []byte, say func(any)) error {
			var q ask.Capture
			_ = json.Unmarshal(b, &q)
			questions <- q
			say(ask.Captured{Data: []byte("one"), Frames: 1})
			say(ask.Captured{Data: []byte("two"), Frames: 2, Lost: 3})
			if q.Count == 0 {
				<-ctx.Done()
				ended <- ctx.Err()
			}
			return nil
		}}))
	s := must(w.as("olga").Capture(w.ctx, &pb.CaptureRequest{Tenant: "acme", Port: "web-1", Points: []string{"drop", "to_wire"}, Count: 2, Snap: 99}))(t)
	all := received(t, s)
	q := <-questions
	if len(all) != 2 || string(all[1].Data) != "two" || all[1].Lost != 3 || q.Inner || q.Count != 2 || q.Snap != 99 || !slices.Equal(q.Points, []ask.Point{"drop", "to_wire"}) {
		t.Errorf("%v; the host was asked %+v", all, q)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	s = must(w.as("acme").Capture(ctx, &pb.CaptureRequest{Port: "web-1"}))(t)
	must(s.Recv())(t)
	if q := <-questions; !q.Inner {
		t.Error("a tenant gets the underlay's headers")
	}
	cancel()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the host captures on for a caller who has left")
	}
	_, err := must(w.as("umbra").Capture(w.ctx, &pb.CaptureRequest{Port: "web-1"}))(t).Recv()
	code(t, "another tenant's VM", err, codes.NotFound, "web-1")
	_, err = must(w.as("acme").Capture(w.ctx, &pb.CaptureRequest{Port: "web-1", Points: []string{"nowhere"}}))(t).Recv()
	code(t, "no such point", err, codes.InvalidArgument, "nowhere", "from_vm")
	var open []grpc.ServerStreamingClient[pb.CaptureChunk]
	for range maxTenantLooks {
		s := must(w.as("acme").Capture(w.ctx, &pb.CaptureRequest{Port: "web-1"}))(t)
		must(s.Recv())(t)
		open = append(open, s)
	}
	_, err = must(w.as("acme").Capture(w.ctx, &pb.CaptureRequest{Port: "web-1"}))(t).Recv()
	code(t, "one more than a tenant may", err, codes.ResourceExhausted, "8")
	must(must(w.as("olga").Capture(w.ctx, &pb.CaptureRequest{Tenant: "acme", Port: "web-1", Count: 1}))(t).Recv())(t)
	web.halt()
	for _, s := range open {
		_, err := s.Recv()
		for err == nil {
			_, err = s.Recv()
		}
		code(t, "the host is gone", err, codes.FailedPrecondition, "h7")
	}
}

func received[M any](t *testing.T, s grpc.ServerStreamingClient[M]) (all []*M) {
	t.Helper()
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
}

func TestWatchDrops(t *testing.T) {
	w, web, db, _ := traced(t)
	questions := make(chan ask.Drops, 10)
	drops := func(_ context.Context, b []byte, say func(any)) error {
		var q ask.Drops
		_ = json.Unmarshal(b, &q)
		questions <- q
		say(ask.Refused{Rows: []ask.DropRow{{Reason: "no_route", Tuple: "tcp a > b", Count: 5, Port: ask.PortRef{Name: "x.0", Tenant: "acme"}}, {Port: ask.PortRef{Name: "vm-1.0", Tenant: "acme"}}}, Lost: 2,
			Totals: []ask.Total{{Reason: "no_route", Count: 77}}})
		return nil
	}
	web.behave(answering(map[string]func(context.Context, []byte, func(any)) error{ask.KindDrops: drops}))
	// The operator hears of both hosts, also that one can't be asked.
	all := received(t, must(w.as("olga").WatchDrops(w.ctx, &pb.WatchDropsRequest{Every: durationpb.New(time.Millisecond)}))(t))
	slices.SortFunc(all, func(a, b *pb.DropReport) int { return strings.Compare(a.Host, b.Host) })
	if len(all) != 2 || all[0].Rows[0].Count != 5 || all[0].Rows[0].Port != "x.0" || all[0].Rows[0].Vm != "" || all[0].Rows[1].Port != "vm-1.0" || all[0].Rows[1].Vm != "web-1" || all[0].Totals[0].Count != 77 || all[0].Lost != 2 ||
		all[1].Host != "h9" || !strings.Contains(all[1].Error, "no answer today") {
		t.Errorf("the operator hears %v", all)
	}
	if q := <-questions; len(q.Ports) != 0 || q.Every != time.Millisecond {
		t.Errorf("for the operator a host is asked %+v", q)
	}
	db.behave(answering(map[string]func(context.Context, []byte, func(any)) error{ask.KindDrops: drops}))
	// A tenant hears of its own ports, and of no totals.
	all = received(t, must(w.as("acme").WatchDrops(w.ctx, &pb.WatchDropsRequest{}))(t))
	for range all {
		if q := <-questions; len(q.Ports) != 1 {
			t.Errorf("for the tenant a host is asked %+v", q)
		}
	}
	if len(all) != 2 || all[0].Totals != nil || all[1].Totals != nil {
		t.Errorf("the tenant hears %v", all)
	}
	if all := received(t, must(w.as("umbra").WatchDrops(w.ctx, &pb.WatchDropsRequest{}))(t)); len(all) != 0 {
		t.Errorf("a tenant without ports hears %v", all)
	}
	_, err := must(w.as("acme").WatchDrops(w.ctx, &pb.WatchDropsRequest{Host: "h7"}))(t).Recv()
	code(t, "a tenant names a host", err, codes.PermissionDenied)
	_, err = must(w.as("umbra").WatchDrops(w.ctx, &pb.WatchDropsRequest{Ports: []string{"web-1"}}))(t).Recv()
	code(t, "another's port", err, codes.NotFound)
	all = received(t, must(w.as("olga").WatchDrops(w.ctx, &pb.WatchDropsRequest{Host: "h9"}))(t))
	if len(all) != 1 || all[0].Host != "h9" {
		t.Errorf("of h9 alone: %v", all)
	}
}

// Who follows drops hears of ports that come later too, and no more of those that
// have gone; also when the host has answered for a while that it has no such port.
func TestDropsFollowPorts(t *testing.T) {
	w, web, db, _ := traced(t)
	db.halt()
	type asking struct {
		ask.Drops
		over context.Context
	}
	questions := make(chan asking, 10)
	refuse := make(chan bool, 1)
	web.behave(answering(nil))
	web.mu.Lock()
	web.manners.answer = func(ctx context.Context, _ string, b []byte, _ func([]byte) error) error {
		q := asking{over: ctx}
		_ = json.Unmarshal(b, &q.Drops)
		questions <- q
		select {
		case <-refuse:
			return errors.New("port has come into force")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	web.mu.Unlock()
	ctx, stop := context.WithCancel(w.ctx)
	defer stop()
	stream := must(w.as("acme").WatchDrops(ctx, &pb.WatchDropsRequest{Follow: true}))(t)
	next := func(what string, ports int) asking {
		t.Helper()
		select {
		case q := <-questions:
			if len(q.Ports) != ports || !q.Follow || !q.Some {
				t.Errorf("%s: the host is asked %+v, want %d ports", what, q.Drops, ports)
			}
			return q
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: the host is not asked", what)
		}
		return asking{}
	}
	ended := func(what string, q asking) {
		t.Helper()
		select {
		case <-q.over.Done():
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: the old question is still open", what)
		}
	}
	first := next("at first", 1)
	must(w.as("acme").CreateVM(w.ctx, &pb.CreateVMRequest{RequestId: "late", Name: "web-2", Type: "tiny", Network: "red"}))(t)
	next("a VM more", 2)
	ended("a VM more", first)
	refuse <- true
	third := next("after a refusal", 2)
	must(w.as("acme").DeleteVM(w.ctx, &pb.DeleteVMRequest{RequestId: "gone", Name: "web-2"}))(t)
	fourth := next("a VM less", 1)
	ended("a VM less", third)
	stop()
	ended("nobody listens", fourth)
	for {
		r, err := stream.Recv()
		if err != nil {
			break
		}
		if r.Host != "h9" {
			t.Errorf("the tenant hears %v", r)
		}
	}
}

func TestListFlows(t *testing.T) {
	w, web, _, _ := traced(t)
	web.behave(answering(map[string]func(context.Context, []byte, func(any)) error{
		ask.KindFlows: func(_ context.Context, _ []byte, say func(any)) error {
			for part := range 3 {
				say([]ask.Flow{{Protocol: vnet.UDP, Local: netip.MustParseAddrPort("10.17.34.51:53"), Remote: netip.MustParseAddrPort("[fd17::9]:50123"), Inbound: true,
					State: "open", Age: time.Duration(part) * time.Second, Packets: 7, Bytes: 700}})
			}
			return nil
		}}))
	all := received(t, must(w.as("acme").ListFlows(w.ctx, &pb.ListFlowsRequest{Port: "web-1"}))(t))
	if len(all) != 3 || all[2].Flows[0].Age.AsDuration() != 2*time.Second || all[0].Flows[0].Remote != "[fd17::9]:50123" || all[0].Flows[0].Protocol != "udp" || !all[0].Flows[0].Inbound {
		t.Errorf("got %v", all)
	}
	_, err := must(w.as("umbra").ListFlows(w.ctx, &pb.ListFlowsRequest{Port: "web-1"}))(t).Recv()
	code(t, "another's port", err, codes.NotFound)
}
