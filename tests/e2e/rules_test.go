package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// What a rule may say, written as a user writes it, judges frames on real hosts:
// priority, deny, prefixes, port ranges, ICMP types, both directions.
func TestWhatRulesSay(t *testing.T) {
	w := shared
	ctx := w.within(t, "no_rule_in", "rule_in", "rule_out")
	web, near, far := w.guest(ctx, t, 1, "red", true), w.guest(ctx, t, 1, "red", true), w.guest(ctx, t, 2, "red", true)
	web.greets(t, 8443)
	far.greets(t, 8443)
	w.must(ctx, t, "group", "create", "said", "--network", "red")
	w.must(ctx, t, "port", "group", web.port, "said")
	echo := func(from *member) bool {
		short, cancel := context.WithTimeout(ctx, 400*time.Millisecond)
		defer cancel()
		return cluster.Ping(short, from.Node, netip.MustParseAddr(web.ip)) == nil
	}
	got := func() string {
		return fmt.Sprintf("near %t far %t ping %t out %t", near.hears(web.ip+":8443") != "", far.hears(web.ip+":8443") != "", echo(far), web.hears(far.ip+":8443") != "")
	}
	for _, c := range []struct{ rules, want string }{
		{"100 a in allow tcp/8443", "near true far true ping false out true"},
		{"100 a in allow tcp/8000-9000 from " + far.ip + "/32", "near false far true ping false out true"},
		{"100 a in allow tcp/8444-9000", "near false far false ping false out true"},
		{"100 a in allow udp/8443", "near false far false ping false out true"},
		{"100 a in allow tcp/8443; 50 b in deny tcp/8443 from " + far.ip + "/32", "near true far false ping false out true"},
		{"100 a in allow tcp/8443; 200 b in deny tcp/8443 from " + far.ip + "/32", "near true far true ping false out true"},
		{"100 a in allow any; 100 b in deny tcp", "near false far false ping true out true"},
		{"100 ping in allow icmp/8", "near false far false ping true out true"},
		{"100 ping in allow icmp/13", "near false far false ping false out true"},
		{"100 a in allow tcp/8443; 900 shut out deny tcp/8443 to " + far.ip + "/32", "near true far true ping false out false"},
	} {
		file := filepath.Join(t.TempDir(), "rules")
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(c.rules, "; ", "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		w.must(ctx, t, "group", "set", "said", "--network", "red", "--rules", file)
		if err := lab.Until(ctx, c.rules, func() error {
			if got := got(); got != c.want {
				return fmt.Errorf("it is %s, want %s", got, c.want)
			}
			return nil
		}); err != nil {
			t.Fatalf("%s: %v", c.rules, err)
		}
	}
	// Of two groups the same: deny decides, wherever it comes from.
	w.must(ctx, t, "group", "set", "said", "--network", "red", "--rule", "100 a in allow any")
	w.must(ctx, t, "group", "create", "shut", "--network", "red", "--rule", "100 b in deny tcp")
	w.must(ctx, t, "port", "group", web.port, "said", "shut")
	if err := lab.Until(ctx, "two groups", func() error {
		if got := got(); got != "near false far false ping true out true" {
			return errors.New(got)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	w.must(ctx, t, "port", "group", web.port, "--none")
	w.must(ctx, t, "group", "delete", "said", "--network", "red")
	w.must(ctx, t, "group", "delete", "shut", "--network", "red")
}

// must runs replug for the tenant.
func (w *world) must(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	out, said, code := w.cli(ctx, t, append(args, "--tenant", tenant)...)
	if code != 0 {
		t.Fatalf("replug %s: exit %d, %s", strings.Join(args, " "), code, said)
	}
	return out
}

// A thousand rules are replaced as one, while connections come and go: none that
// both sets allow is refused in between. What the new set forbids is cut, also a
// connection that is open, and goes on when it is allowed again.
func TestThousandRules(t *testing.T) {
	w := shared
	ctx := w.within(t, "no_rule_in", "rule_in")
	web, far := w.guest(ctx, t, 1, "red", true), w.guest(ctx, t, 2, "red", true)
	web.greets(t, 8443)
	w.must(ctx, t, "group", "create", "many", "--network", "red")
	set := func(salt int, last string) {
		t.Helper()
		var rules strings.Builder
		for i := range 999 {
			fmt.Fprintf(&rules, "%d r%d-%d in allow tcp/%d-%d from 10.%d.0.0/16\n", 100+i, salt, i, 9000+i, 9000+i, 21+salt+i%200)
		}
		file := filepath.Join(t.TempDir(), "rules")
		if err := os.WriteFile(file, []byte(rules.String()+last+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		w.must(ctx, t, "group", "set", "many", "--network", "red", "--rules", file)
	}
	const https = "5000 https in allow tcp/8443-8444 from 10.20.0.0/16"
	set(0, https)
	w.must(ctx, t, "port", "group", web.port, "many")
	judged := func(what, rule, drop string) {
		t.Helper()
		if err := lab.Until(ctx, what, func() error {
			probe, _ := w.trace(ctx, t, "--from", far.port, "--to", web.port, "--from-ip", far.ip, "tcp/8443")
			last := probe.Hops[len(probe.Hops)-1]
			if last.RuleIn != rule || last.Drop != drop {
				return fmt.Errorf("rule %q, drop %q; want %q, %q", last.RuleIn, last.Drop, rule, drop)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	judged("a thousand rules", "many/https", "")
	talk := web.talk(ctx, t, far)
	refusals := w.dropped(ctx, t, "no_rule_in", "rule_in")
	var tried, failed atomic.Int32
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if got, err := far.answered(ctx, "", web.ip+":8443"); got != web.port || err != nil {
				failed.Add(1)
			}
			tried.Add(1)
		}
	}()
	for salt := 1; salt < 4; salt++ {
		so := tried.Load()
		set(salt, strings.Replace(https, "https", fmt.Sprint("https-", salt), 1))
		judged("the next thousand", fmt.Sprint("many/https-", salt), "")
		if err := lab.Until(ctx, "connections meanwhile", func() error {
			if n := tried.Load() - so; n < 4 {
				return fmt.Errorf("%d were tried", n)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	<-done
	if failed.Load() > 0 {
		t.Errorf("%d of %d connections failed while rules were replaced", failed.Load(), tried.Load())
	}
	if n := w.dropped(ctx, t, "no_rule_in", "rule_in") - refusals; n > 0 {
		t.Errorf("%.0f frames were refused while rules were replaced", n)
	}
	talk(true, "after the sets that allow it")
	set(4, "5000 https in deny tcp/8443-8444 from 10.20.0.0/16")
	judged("a set that denies", "many/https", "rule_in")
	talk(false, "under a set that denies it")
	set(5, https)
	judged("allowed again", "many/https", "")
	talk(true, "allowed again")
	_, said, code := w.cli(ctx, t, "group", "set", "many", "--network", "red", "--rules", tooMany(t), "--tenant", tenant)
	if code == 0 || !strings.Contains(said, "1000") {
		t.Errorf("1,001 rules: exit %d, %s", code, said)
	}
	judged("what was before a refused set", "many/https", "")
	w.must(ctx, t, "port", "group", web.port, "--none")
	w.must(ctx, t, "group", "delete", "many", "--network", "red")
}

func tooMany(t *testing.T) string {
	var rules strings.Builder
	for i := range 1001 {
		fmt.Fprintf(&rules, "100 r%d in allow tcp/%d\n", i, 1000+i)
	}
	file := filepath.Join(t.TempDir(), "too-many")
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// talk opens a connection to the guest's port 8444 that stays, and returns what
// asks whether words come through.
func (m *member) talk(ctx context.Context, t *testing.T, from *member) func(want bool, what string) {
	t.Helper()
	var l net.Listener
	err := m.Do(func() (err error) {
		l, err = net.Listen("tcp", m.ip+":8444")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var c, other net.Conn
	if err := from.Do(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, "tcp", m.ip+":8444")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if other, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	l.Close()
	t.Cleanup(func() { c.Close(); other.Close() })
	lines := bufio.NewReader(other)
	n := 0
	return func(want bool, what string) {
		t.Helper()
		word := fmt.Sprintf("word %d\n", n)
		until := time.Now().Add(time.Second)
		if end, ok := ctx.Deadline(); want && ok {
			until = end // what was held back comes first
		}
		_ = other.SetReadDeadline(until)
		n++
		_, err := c.Write([]byte(word))
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		for {
			got, err := lines.ReadString('\n')
			switch {
			case want && err != nil:
				t.Errorf("%s: %v", what, err)
				return
			case !want && err == nil:
				t.Errorf("%s: %q came through", what, got)
				return
			case !want && !errors.Is(err, os.ErrDeadlineExceeded):
				t.Errorf("%s: the connection is gone: %v", what, err)
				return
			case !want || got == word:
				return
			}
		}
	}
}

// S59, S84: a port that is swapped is in its new groups with the first frame: a rule of the
// network that names its group lets it in at once; undone, it is in none.
func TestGroupsComeWithSwap(t *testing.T) {
	w := shared
	ctx := w.within(t, "no_rule_in")
	server, stranger, mover := w.guest(ctx, t, 2, "blue", true), w.guest(ctx, t, 1, "blue", true), w.guest(ctx, t, 1, "red", true)
	server.greets(t, 8443)
	w.must(ctx, t, "group", "create", "movers", "--network", "blue")
	w.must(ctx, t, "group", "create", "served", "--network", "blue", "--rule", "100 https in allow tcp/8443 from group:movers")
	w.must(ctx, t, "port", "group", server.port, "served")
	stranger.eventually(ctx, t, "one in no group", server.ip+":8443", "")
	members := func() string {
		g, err := pb.NewGroupsClient(w.conn).GetGroup(ctx, &pb.GetGroupRequest{Tenant: tenant, Network: "blue", Name: "movers"})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(g.Ports, " ")
	}
	home, ip := mover.ip, w.ip()
	mover.also(ctx, t, ip)
	s := mover.start(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none", Confirm: "caller", Groups: []string{"movers"}})
	w.in(ctx, t, s.Id, "published")
	if err := lab.Until(ctx, "the server's host to know the group", func() error {
		probe, _ := w.trace(ctx, t, "--from", mover.port, "--to", server.port, "--from-ip", ip, "tcp/8443")
		if last := probe.Hops[len(probe.Hops)-1]; last.Host != "h2" || last.RuleIn != "served/https" {
			return fmt.Errorf("the last hop is %v", last)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	refusals := w.dropped(ctx, t, "no_rule_in")
	got, err := mover.answered(ctx, ip, server.ip+":8443")
	if n := w.dropped(ctx, t, "no_rule_in") - refusals; got != server.port || err != nil || n > 0 {
		t.Errorf("in its new group it hears %q (%v), want %q; %.0f frames were refused before", got, err, server.port, n)
	}
	stranger.eventually(ctx, t, "one in no group, after the swap", server.ip+":8443", "")
	if got := members(); got != tenant+"."+mover.port && got != mover.port {
		t.Errorf("the group has %q", got)
	}
	if _, err := pb.NewSwapsClient(w.conn).CancelSwap(ctx, &pb.CancelSwapRequest{RequestId: w.id(), Id: s.Id}); err != nil {
		t.Fatal(err)
	}
	w.ends(ctx, t, s.Id, "undone")
	if got := members(); got != "" {
		t.Errorf("undone, and the group has %q", got)
	}
	reaches(ctx, t, w.peer(ctx, t, "red").Node, home)
	w.must(ctx, t, "port", "group", server.port, "--none")
	w.must(ctx, t, "group", "delete", "served", "--network", "blue")
	w.must(ctx, t, "group", "delete", "movers", "--network", "blue")
}
