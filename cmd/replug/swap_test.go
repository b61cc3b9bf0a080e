package main

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "replug/control/controlpb"
)

// The story of a swap that climbed a rung, and what `swap list` says of it and of one
// that was undone before anything was known.
func TestSwapText(t *testing.T) {
	begun := time.Date(2026, 3, 7, 2, 41, 9, 0, time.UTC)
	hop := func(after time.Duration, name, by string) *pb.Hop {
		return &pb.Hop{Name: name, At: timestamppb.New(begun.Add(after)), By: by}
	}
	s := &pb.Swap{Id: "s-17", Phase: "committed", Done: true, Ok: true, Vm: "vm-23", Port: "p-23", Host: "h7", Mac: "02:52:00:00:00:17", Pa: "172.30.9.23",
		Before: &pb.SidedPlace{Network: "red", Addrs: []string{"10.17.34.51"}}, After: &pb.SidedPlace{Network: "blue", Addrs: []string{"10.17.34.62", "fd00:7::62"}},
		Confirm: "guest", Rung: "bounce 200ms", Blackout: durationpb.New(1234500 * time.Microsecond), Started: timestamppb.New(begun),
		Timeline: []*pb.Hop{hop(0, "reserved", "server"), hop(4200*time.Microsecond, "stage", "host"), hop(19*time.Millisecond, "link_down", "host"),
			hop(1031*time.Millisecond, "no proof by bounce 20ms", "host"), hop(1262*time.Millisecond, "seen", "host"), hop(1290*time.Millisecond, "committed", "server")},
		Guest: &pb.GuestReport{Hostname: "web-1", Addrs: []string{"10.17.34.62/24"}, BootId: "7d2a", Ok: true, Error: "command app: exit status 3"}}
	var out strings.Builder
	story(&out, s)
	same(t, out.String(), `swap s-17 of VM vm-23, begun 2026-03-07T02:41:09Z, proof: guest
       0.0 ms  reserved                 server
       4.2 ms  stage                    host
      19.0 ms  link_down                host
    1031.0 ms  no proof by bounce 20ms  host
    1262.0 ms  seen                     host
    1290.0 ms  committed                server
committed: red 10.17.34.51 -> blue 10.17.34.62,fd00:7::62
  kept      MAC 02:52:00:00:00:17, PA 172.30.9.23, host h7
  rung      bounce 200ms
  blackout  1234.5 ms, last frame before to first after, seen by the dataplane
  guest     web-1 10.17.34.62/24, boot id 7d2a
  it says   command app: exit status 3
`)
	undone := &pb.Swap{Id: "s-18", Phase: "undone", Done: true, Port: "p-41", Host: "h9", Mac: "02:52:00:00:00:29", Pa: "172.30.9.41", Before: s.Before, After: s.After,
		Confirm: "lease", Error: "host h9: no room", Started: timestamppb.New(begun), Timeline: []*pb.Hop{hop(0, "reserved", "server"), hop(7*time.Millisecond, "undone", "server")}}
	out.Reset()
	story(&out, undone)
	same(t, out.String(), `swap s-18 of port p-41, begun 2026-03-07T02:41:09Z, proof: lease
       0.0 ms  reserved                 server
       7.0 ms  undone                   server
undone: red 10.17.34.51 -> blue 10.17.34.62,fd00:7::62
  kept      MAC 02:52:00:00:00:29, PA 172.30.9.41, host h9
  rung      -
  error     host h9: no room
`)
	out.Reset()
	if err := swaps(s, undone).print(&out); err != nil {
		t.Fatal(err)
	}
	same(t, out.String(), `SWAP  PHASE      PORT  HOST  BEFORE           AFTER                        RUNG          BLACKOUT   ERROR
s-17  committed  p-23  h7    red 10.17.34.51  blue 10.17.34.62,fd00:7::62  bounce 200ms  1234.5 ms  -
s-18  undone     p-41  h9    red 10.17.34.51  blue 10.17.34.62,fd00:7::62  -             -          host h9: no room
`)
}
