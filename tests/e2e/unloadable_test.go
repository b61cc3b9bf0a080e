package e2e_test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	pb "replug/control/controlpb"
)

// An agent that takes over and can't, whether its settings are wrong, its maps don't
// take the rows in force, or its programs don't hook in: it says why and ends, what was
// in force stays there, and bystanders lose nothing (invariant 7).
func TestAgentCannotTakeOver(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", true)
	peer := w.peer(ctx, t, "red").Node
	reaches(ctx, t, peer, web.ip)
	lossless := w.bystanders(ctx, t)
	if err := w.Agent(1).Stop(ctx); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, flag string
		code       int
		says       []string
	}{
		{"more mappings than there may be", "--max-mappings=16777217", 2, []string{"max-mappings 16777217: want 1 to 16777216"}},
		{"fewer mappings than are in force", "--max-mappings=1", 1, []string{"put the datapath in force", "migrate the datapath in", "mappings", "the old one stays in force"}},
		{"XDP where there is none", "--xdp=on", 1, []string{"put the datapath in force", "XDP"}},
	} {
		before, err := os.ReadFile(w.Agent(1).Log())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.StartHost(ctx, 1, c.flag); err != nil {
			t.Fatal(err)
		}
		agent := w.Agent(1)
		var exit *exec.ExitError
		if err := agent.Wait(ctx); !errors.As(err, &exit) || exit.ExitCode() != c.code {
			t.Errorf("%s: the agent ended with %v, want exit code %d", c.what, err, c.code)
		}
		said, err := os.ReadFile(agent.Log())
		if err != nil {
			t.Fatal(err)
		}
		for _, words := range c.says {
			if now := string(said[len(before):]); !strings.Contains(now, words) {
				t.Errorf("%s: the agent doesn't say %q, but:\n%s", c.what, words, now)
			}
		}
		reaches(ctx, t, peer, web.ip)
	}
	if err := errors.Join(w.StartHost(ctx, 1), w.Connected(ctx)); err != nil {
		t.Fatal(err)
	}
	ip := w.ip()
	web.also(ctx, t, ip)
	web.move(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none"})
	reaches(ctx, t, w.peer(ctx, t, "blue").Node, ip)
	lossless()
}
