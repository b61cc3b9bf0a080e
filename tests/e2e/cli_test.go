package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	pb "replug/control/controlpb"
)

// cli runs replug as the operator and returns what it printed, its error's text,
// and its exit code.
func (w *world) cli(ctx context.Context, t *testing.T, args ...string) (out, said string, code int) {
	t.Helper()
	if !slices.Contains(args, "--server") {
		args = append(args, "--server", w.Endpoint())
	}
	b, err := w.Lab.Server().Run(ctx, append([]string{filepath.Join(bin, "replug"), "--pki", w.PKI}, args...)...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err != nil {
		return string(b), err.Error(), exit.ExitCode()
	}
	return string(b), "", 0
}

// Every exit code, from the real server, with words that help.
func TestExitCodes(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", true)
	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"list hosts", []string{"host", "list"}, 0, ""},
		{"no certificate", []string{"host", "list", "--as", "nobody"}, 1, "replug pki"},
		{"a swap that can't be confirmed", []string{"port", "swap", web.port, "--tenant", tenant, "--network", "blue", "--lease-budget", "200ms", "--trigger", "none", "--wait"}, 1, "undone"},
		{"unknown flag", []string{"host", "list", "--colour"}, 2, "--help"},
		{"unknown verb", []string{"vm", "fly", "web-1"}, 2, "fly"},
		{"unknown noun", []string{"spaceship"}, 2, "spaceship"},
		{"no name", []string{"vm", "show"}, 2, "a VM"},
		{"unknown output", []string{"host", "list", "-o", "yaml"}, 2, "json"},
		{"bad address", []string{"port", "swap", web.port, "--tenant", tenant, "--network", "blue", "--ip", "10.20.0.300"}, 2, "10.20.0.300"},
		{"address outside", []string{"port", "swap", web.port, "--tenant", tenant, "--network", "blue", "--ip", "10.21.0.30"}, 2, "10.21.0.30"},
		{"unknown network", []string{"port", "swap", web.port, "--tenant", tenant, "--network", "mauve"}, 3, "mauve"},
		{"unknown port", []string{"port", "swap", "ghost", "--tenant", tenant, "--network", "blue"}, 3, "ghost"},
		{"unknown VM", []string{"vm", "show", "ghost", "--tenant", tenant}, 3, "ghost"},
		{"unknown swap", []string{"swap", "show", "sw-ghost"}, 3, "sw-ghost"},
		{"name taken", []string{"tenant", "create", tenant}, 4, tenant},
		{"network in use", []string{"network", "delete", "red", "--tenant", tenant}, 4, "red"},
		{"already there", []string{"port", "swap", web.port, "--tenant", tenant, "--network", "red"}, 4, "already"},
		{"nobody listens", []string{"host", "list", "--server", "127.0.0.1:9"}, 5, ""},
		{"out of time", []string{"host", "list", "--timeout", "1ns"}, 5, ""},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			_, said, code := w.cli(ctx, t, c.args...)
			if code != c.code || !strings.Contains(said, c.says) {
				t.Errorf("replug %s exits with %d and says %q, want %d and %q", strings.Join(c.args, " "), code, said, c.code, c.says)
			}
		})
	}
}

// Commands of the other programs that can't be understood exit with 2, too.
func TestUsageOfPrograms(t *testing.T) {
	ctx := shared.within(t)
	for _, args := range [][]string{
		{"replug-server", "--colour"}, {"replug-server"}, {"replug-host", "--colour"}, {"replug-host", "--max-ports", "none"}, {"replug-guest", "--colour"},
	} {
		out, err := exec.CommandContext(ctx, filepath.Join(bin, args[0]), args[1:]...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), "-h") {
			t.Errorf("%v: %v, %s; want exit code 2 and the way to --help", args, err, out)
		}
	}
}

// The help of every command begins with an example.
func TestHelp(t *testing.T) {
	ctx := shared.within(t)
	help := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(ctx, filepath.Join(bin, args[0]), append(args[1:], "--help")...).CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), "Example:\n  ") {
			t.Errorf("%v --help: %v; it begins %.60q, want an example", args, err, out)
		}
		return string(out)
	}
	for _, p := range []string{"replug-server", "replug-host", "replug-guest"} {
		help(p)
	}
	verb := regexp.MustCompile(`(?m)^  ([a-z]+) +\S`)
	seen := 0
	var walk func(args ...string)
	walk = func(args ...string) {
		seen++
		_, commands, ok := strings.Cut(help(args...), "\nCommands:\n")
		if !ok {
			return
		}
		commands, _, _ = strings.Cut(commands, "\n\n")
		for _, m := range verb.FindAllStringSubmatch(commands, -1) {
			if m[1] != "help" && m[1] != "completion" {
				walk(append(slices.Clone(args), m[1])...)
			}
		}
	}
	walk("replug")
	if seen < 45 {
		t.Errorf("only %d commands were found: the list in the help can't be read", seen)
	}
}

// JSON has every documented field, the empty ones too, and no other.
func TestJSON(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", true)
	ip := w.ip()
	web.also(ctx, t, ip)
	swap := []string{"id", "phase", "done", "ok", "error", "vm", "port", "host", "before", "after", "mac", "pa", "confirm", "trigger",
		"rung", "blackout", "timeline", "guest", "started", "ended", "claim"}
	port := []string{"name", "id", "host", "tenant", "vm", "mac", "pa", "network", "vni", "addrs", "epoch", "status", "error", "mtu", "tap", "groups", "limits", "power", "router", "services"}
	host := []string{"name", "address", "pa_prefix", "mtu", "connected", "since", "ports", "ports_used", "memory_mib", "memory_used_mib", "images", "labels", "personalities", "version"}
	for _, c := range []struct {
		args   []string
		within string // of the first element of this list
		fields []string
	}{
		{[]string{"cluster", "show"}, "", []string{"id", "era", "revision", "leader", "store_txns"}},
		{[]string{"host", "list"}, "hosts", host},
		{[]string{"network", "show", "red", "--tenant", tenant}, "", []string{"moniker", "tenant", "vni", "subnets", "routes", "dns", "domain", "ntp", "mtu", "lease", "placeholder", "flow_log", "peers"}},
		{[]string{"port", "show", web.port, "--tenant", tenant}, "", port},
		{[]string{"port", "swap", web.port, "--tenant", tenant, "--network", "blue", "--ip", ip, "--plan"}, "",
			[]string{"vm", "port", "changes", "keeps", "warnings", "peers_lost", "peers_new"}},
		{[]string{"port", "swap", web.port, "--tenant", tenant, "--network", "blue", "--ip", ip, "--trigger", "none", "--wait"}, "", swap},
		{[]string{"swap", "list", "--tenant", tenant}, "swaps", swap},
	} {
		out, said, code := w.cli(ctx, t, append(c.args, "-o", "json")...)
		var got map[string]json.RawMessage
		if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil {
			t.Errorf("%v: exit code %d, %s, %v: %s", c.args, code, said, err, out)
			continue
		}
		if c.within != "" {
			var list []map[string]json.RawMessage
			if err := json.Unmarshal(got[c.within], &list); err != nil || len(list) == 0 {
				t.Errorf("%v: no list %q: %v: %s", c.args, c.within, err, out)
				continue
			}
			got = list[0]
		}
		var names []string
		for name := range got {
			names = append(names, name)
		}
		slices.Sort(names)
		slices.Sort(c.fields)
		if !slices.Equal(names, c.fields) {
			t.Errorf("%v: fields %v, want %v", c.args, names, c.fields)
		}
	}
}

// A plan tells what would change and changes nothing: no transaction, no status,
// no frame goes another way.
func TestPlanChangesNothing(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web, peer := w.guest(ctx, t, 1, "red", true), w.peer(ctx, t, "red")
	w.peer(ctx, t, "blue")
	admin, ports := pb.NewAdminClient(w.conn), pb.NewPortsClient(w.conn)
	look := func() (string, *pb.ClusterInfo) {
		p, err := ports.GetPort(ctx, &pb.GetPortRequest{Tenant: tenant, Name: web.port})
		if err != nil {
			t.Fatal(err)
		}
		c, err := admin.GetCluster(ctx, &pb.GetClusterRequest{})
		if err != nil {
			t.Fatal(err)
		}
		p.Status = "" // the host's own progress with the place it is in
		return p.String(), c
	}
	portBefore, before := look()
	ip := w.ip()
	out, said, code := w.cli(ctx, t, "port", "swap", web.port, "--tenant", tenant, "--network", "blue", "--ip", ip, "--plan")
	if code != 0 {
		t.Fatal(said)
	}
	for _, words := range []string{`network +red +blue`, `address +` + web.ip + `\S* +` + ip, `keeps +mac `, `reaches no more +.*` + peerIP, `will reach +.*` + peerIP, "Nothing was changed"} {
		if !regexp.MustCompile(words).MatchString(out) {
			t.Errorf("the plan doesn't say %q:\n%s", words, out)
		}
	}
	portAfter, after := look()
	if portBefore != portAfter || before.StoreTxns != after.StoreTxns || before.Revision != after.Revision {
		t.Errorf("the plan changed something:\n%s, %v\n%s, %v", portBefore, before, portAfter, after)
	}
	reaches(ctx, t, peer.Node, web.ip)
}

// --wait prints each hop once, in order, with ms, then the receipt.
func TestWaitShowsTheTimeline(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", false)
	out, said, code := w.cli(ctx, t, "port", "swap", web.port, "--tenant", tenant, "--network", "blue", "--ip", w.ip(), "--wait")
	if code != 0 {
		t.Fatal(said)
	}
	line := regexp.MustCompile(`(?m)^ +([0-9]+\.[0-9]) ms  (\S+) +(server|host)$`)
	var names []string
	for _, m := range line.FindAllStringSubmatch(out, -1) {
		names = append(names, m[2])
	}
	at := -1
	for _, want := range []string{"reserved", "staged", "switched", "flip", "leased", "committed"} {
		i := slices.Index(names, want)
		if i <= at {
			t.Errorf("%s is no hop after the %dth of %v", want, at, names)
		}
		at = i
	}
	if len(slices.Compact(slices.Sorted(slices.Values(names)))) != len(names) {
		t.Errorf("a hop is printed twice: %v", names)
	}
	for _, words := range []string{`kept +MAC`, `rung +bounce`} {
		if !regexp.MustCompile(words).MatchString(out) {
			t.Errorf("the receipt doesn't say %q:\n%s", words, out)
		}
	}
}
