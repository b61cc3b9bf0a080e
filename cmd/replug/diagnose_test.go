package main

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
	"replug/directory/frame"
	"replug/directory/vnet"
)

func same(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTraceText(t *testing.T) {
	b, err := frame.Compose(frame.Spec{SrcMAC: vnet.PortMAC(7), DstMAC: vnet.GatewayMAC, Src: netip.MustParseAddr("10.17.34.51"), Dst: netip.MustParseAddr("10.17.34.85"),
		Protocol: vnet.ICMP})
	if err != nil {
		t.Fatal(err)
	}
	r := &pb.TraceResponse{Summary: "dropped: no_mapping (no PA is known), on host h7", Hops: []*pb.TraceHop{{Host: "h7", Program: "from_vm", Sent: b, Verdict: "dropped",
		Steps: []*pb.TraceStep{{Stage: "rules out", Says: "allowed by web/any"}, {Stage: "verdict", Says: "dropped: no_mapping (no PA is known)"}}}}}
	var out strings.Builder
	traceText(&out, r, false)
	want := `1. host h7, from_vm
   frame      Ethernet 02:52:00:00:00:07 > 02:52:50:4c:47:57
              IPv4 10.17.34.51 > 10.17.34.85, 28 bytes, TTL 64, don't fragment
              ICMP echo request
   rules out  allowed by web/any
   verdict    dropped: no_mapping (no PA is known)

dropped: no_mapping (no PA is known), on host h7
`
	same(t, out.String(), want)
	r.Hops[0].Verdict, r.Hops[0].Frame = "to_wire", b
	out.Reset()
	traceText(&out, r, true)
	if got := out.String(); strings.Count(got, "ICMP echo request") != 2 || strings.Count(got, "00000020  ") != 2 || !strings.Contains(got, "   leaves as  Ethernet") {
		t.Errorf("with the frame that leaves, and bytes:\n%s", got)
	}
	var c caller
	c.output = "table"
	cmd := &cobra.Command{}
	cmd.SetOut(&out)
	var outcome outcomeError
	if err := c.printTrace(cmd, r, false); !errors.As(err, &outcome) || exitCode(err) != exitError {
		t.Errorf("a frame that would not arrive: %v", err)
	}
	r.Delivered = true
	if err := c.printTrace(cmd, r, false); err != nil {
		t.Errorf("a frame that would arrive: %v", err)
	}
}

func TestDropsText(t *testing.T) {
	reports := []*pb.DropReport{
		{Host: "h7", Rows: []*pb.DropRow{{Reason: "spoofed_ca", Port: "acme.web-1", Tuple: "udp 10.0.0.9:53 > 10.0.0.5:50123", Count: 1234}, {Reason: "outer_bad", Tuple: "udp 100.64.9.1:7 > 100.64.7.1:4789", Count: 3}},
			Totals: []*pb.DropTotal{{Reason: "spoofed_ca", Count: 99999}}},
		{Host: "h9", Lost: 17},
	}
	var out strings.Builder
	rows, totals := &table{head: []string{"HOST", "PORT", "REASON", "COUNT", "FRAME"}}, &table{head: []string{"HOST", "REASON", "TOTAL"}}
	for _, r := range reports {
		dropRows(rows, totals, r)
	}
	if err := printTables(&out, rows, totals); err != nil {
		t.Fatal(err)
	}
	same(t, out.String(), `HOST  PORT        REASON      COUNT  FRAME
h7    acme.web-1  spoofed_ca  1234   udp 10.0.0.9:53 > 10.0.0.5:50123
h7    -           outer_bad   3      udp 100.64.9.1:7 > 100.64.7.1:4789
h9    -           -           17     too many to tell apart

HOST  REASON      TOTAL
h7    spoofed_ca  99999
`)
	out.Reset()
	for _, r := range reports {
		dropLines(&out, time.Date(2026, 3, 1, 4, 5, 6, 0, time.UTC), r)
	}
	same(t, out.String(), `04:05:06  h7        acme.web-1            spoofed_ca              1234  udp 10.0.0.9:53 > 10.0.0.5:50123
04:05:06  h7        -                     outer_bad                  3  udp 100.64.9.1:7 > 100.64.7.1:4789
04:05:06  h9        -                     -                         17  too many to tell apart
`)
}

func TestFlowsText(t *testing.T) {
	var out strings.Builder
	err := flows(&pb.ListFlowsResponse{Flows: []*pb.Flow{
		{Protocol: "tcp", Local: "10.0.0.5:443", Remote: "10.0.0.9:50123", Inbound: true, State: "open", Age: durationpb.New(3725400 * time.Millisecond), Idle: durationpb.New(12345678), Packets: 7, Bytes: 900},
		{Protocol: "icmp", Local: "10.0.0.5", Remote: "10.0.0.9", State: "opening"}}}).print(&out)
	if err != nil {
		t.Fatal(err)
	}
	same(t, out.String(), `PROTOCOL  LOCAL         DIRECTION  REMOTE          STATE    AGE     IDLE  PACKETS  BYTES
tcp       10.0.0.5:443  in         10.0.0.9:50123  open     1h2m5s  12ms  7        900
icmp      10.0.0.5      out        10.0.0.9        opening  0s      0s    0        0
`)
}

func TestDiagnoseUsage(t *testing.T) {
	for _, name := range []string{"trace", "capture", "drops", "flows"} {
		if cmd, _, err := newRoot().Find([]string{name}); err != nil || cmd.Name() != name {
			t.Errorf("replug has no command %s: %v", name, err)
		}
	}
	for _, args := range [][]string{
		{"trace", "--from", "web-1", "--to", "10.0.0.9"}, {"trace", "tcp/443"}, {"trace", "--from", "web-1", "--to", "10.0.0.9", "tcp/0"},
		{"trace", "--from", "web-1", "--to", "10.0.0.9", "tcp/https"}, {"capture"}, {"flows"},
	} {
		if got := run(t.Context(), args); got != exitUsage {
			t.Errorf("replug %s: exit %d, want %d", strings.Join(args, " "), got, exitUsage)
		}
	}
	if terminal(&strings.Builder{}) {
		t.Error("a buffer is a terminal")
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if terminal(null) {
		t.Error("/dev/null is a terminal")
	}
}
