package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "replug/control/controlpb"
)

func TestParseRule(t *testing.T) {
	for _, c := range []struct {
		line string
		want *pb.Rule
	}{
		{"100 https in allow tcp/443 from 10.0.0.0/8", &pb.Rule{Priority: 100, Name: "https", Direction: "in", Action: "allow", Protocol: "tcp", MinPort: 443, MaxPort: 443, Remote: "10.0.0.0/8"}},
		{"  7  media in allow udp/5000-5099", &pb.Rule{Priority: 7, Name: "media", Direction: "in", Action: "allow", Protocol: "udp", MinPort: 5000, MaxPort: 5099}},
		{"65535 db out deny any to group:db", &pb.Rule{Priority: 65535, Name: "db", Direction: "out", Action: "deny", RemoteGroup: "db"}},
		{"9 ping in allow icmp/8 from any", &pb.Rule{Priority: 9, Name: "ping", Direction: "in", Action: "allow", Protocol: "icmp", IcmpType: proto.Uint32(8)}},
		{"9 esp in allow 50 from fd00::/8", &pb.Rule{Priority: 9, Name: "esp", Direction: "in", Action: "allow", Protocol: "50", Remote: "fd00::/8"}},
		{"100 https in allow", nil},
		{"100 https in allow tcp/443 from", nil},
		{"100 https in allow tcp/443 to any", nil},
		{"100 https out allow tcp/443 from any", nil},
		{"65536 https in allow tcp/443", nil},
		{"100 https in allow tcp/https", nil},
		{"100 https in allow tcp/70000", nil},
	} {
		got, err := parseRule(c.line)
		if (err == nil) != (c.want != nil) || c.want != nil && !proto.Equal(got, c.want) {
			t.Errorf("%q: got %v, %v; want %v", c.line, got, err, c.want)
		}
		if c.want == nil {
			continue
		}
		line := strings.Join([]string{"9", got.Name, got.Direction, got.Action, what(got), map[string]string{"in": "from", "out": "to"}[got.Direction], whom(got)}, " ")
		if got.Protocol == "" {
			line = strings.Replace(line, "deny  to", "deny any to", 1) // the server says any
		}
		again, err := parseRule(line)
		if again != nil {
			again.Priority = got.Priority
		}
		if err != nil || !proto.Equal(again, got) {
			t.Errorf("printed as %q, read as %v, %v", line, again, err)
		}
	}
}

func TestReadRules(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte("# who may\n\n200 ssh in allow tcp/22 from group:admins # only they\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readRules([]string{"100 https in allow tcp/443"}, file)
	if err != nil || len(got) != 2 || got[1].Name != "ssh" || got[1].RemoteGroup != "admins" {
		t.Errorf("rules %v, %v", got, err)
	}
	if _, err := readRules(nil, file+".gone"); err == nil {
		t.Error("a file that is not there was read")
	}
}

func TestParseBackend(t *testing.T) {
	for s, want := range map[string]*pb.Backend{
		"web-1":         {Member: "web-1"},
		"web-1:8443":    {Member: "web-1", Port: 8443},
		"web-1:8443=50": {Member: "web-1", Port: 8443, Weight: proto.Uint32(50)},
		"web-1=0":       {Member: "web-1", Weight: proto.Uint32(0)},
		":8443":         nil, "web-1:https": nil, "web-1=": nil, "": nil,
	} {
		got, err := parseBackend(s)
		if (err == nil) != (want != nil) || want != nil && !proto.Equal(got, want) {
			t.Errorf("%q: got %v, %v; want %v", s, got, err, want)
		}
	}
}

func TestUnits(t *testing.T) {
	for s, want := range map[string]uint64{"": 0, "0": 0, "77": 77, "50k": 50_000, "2.5G": 2_500_000_000, "100M": 100_000_000, "1T": 1_000_000_000_000} {
		var u units
		if got := u.parse(s); got != want || u.err != nil {
			t.Errorf("%q: got %d, %v; want %d", s, got, u.err, want)
		}
		if want > 0 && unit(want) != s {
			t.Errorf("%d: printed %q, want %q", want, unit(want), s)
		}
	}
	for _, s := range []string{"fast", "100m", "-1", "1kM", "1e99"} {
		var u units
		if got := u.parse(s); u.err == nil {
			t.Errorf("%q: got %d, want an error", s, got)
		}
	}
}
