package main

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"log/slog"

	"replug/control"
	"replug/directory/etcd"
	"replug/directory/pki"
	"replug/directory/store"
)

// server runs a replug-server for commands, and returns their flags.
func server(t *testing.T) []string {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(pki.Init(dir, "testbed"))
	for _, r := range []pki.Request{{Kind: pki.Server, Name: "s1"}, {Kind: pki.Operator, Name: "operator"}, {Kind: pki.Tenant, Name: "acme"}} {
		_, err := pki.Issue(dir, r)
		must(err)
	}
	db, err := etcd.Open(ctx, etcd.Config{DataDir: filepath.Join(dir, "data"), Name: "s1"})
	must(err)
	id, err := db.Identity(ctx)
	must(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	leads := make(chan struct{})
	srv, err := control.New(control.Config{
		Name: "s1", Address: l.Addr().String(), Store: store.New(db.Client()), Cluster: id.ID, Era: id.Era, Alone: true,
		OnLead: func(now bool) {
			if now {
				close(leads)
			}
		},
	})
	must(err)
	tls, err := pki.DirFiles(dir, "s1").ServerTLS(slog.New(slog.DiscardHandler))
	must(err)
	g := grpc.NewServer(append(srv.Options(), grpc.Creds(credentials.NewTLS(tls)))...)
	srv.Register(g)
	var running sync.WaitGroup
	running.Go(func() { _ = srv.Run(ctx) })
	running.Go(func() { _ = g.Serve(l) })
	t.Cleanup(func() {
		g.Stop()
		stop()
		running.Wait()
		db.Close()
	})
	select {
	case <-leads:
	case <-ctx.Done():
		t.Fatal("the server does not lead")
	}
	return []string{"--server", l.Addr().String(), "--pki", dir}
}

// said runs one command and returns its exit code and what it printed.
func said(t *testing.T, args ...string) (int, string) {
	t.Helper()
	root := newRoot()
	var out strings.Builder
	root.SetOut(&out)
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	if err != nil {
		out.WriteString(message(err))
	}
	return exitCode(err), out.String()
}

// A person makes networks, routes, peers, a VTEP, groups and a service, looks at
// them, and takes all down again.
func TestPolicyJourney(t *testing.T) {
	flags := append(server(t), "--tenant", "acme")
	rules := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(rules, []byte("300 ssh in allow tcp/22 from group:web # only from one another\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		do   string
		code int
		says []string
	}{
		{"tenant create acme", 0, []string{"acme"}},
		{"network create blue --subnet 10.0.7.0/24 --subnet fd00:7::", 0, []string{"fd00:7::/64", "fe80::5250:4c00:"}},
		{"network create red --subnet 10.0.8.0/24", 0, []string{"10.0.8.1"}},
		{"network subnet add red fd00:8::/64 --slaac", 0, []string{"fd00:8::/64"}},
		{"network route add blue ::/0 fd00:7::9", 0, []string{"::/0=fd00:7::9"}},
		{"network route add blue ::/0 fd00:7::9", 4, []string{"remove it first"}},
		{"network route add blue 0.0.0.0/0 fd00:7::9", 2, []string{"same family"}},
		{"network peer blue red", 0, []string{"red"}},
		{"network route list red", 0, []string{"10.0.7.0/24  blue  peer", "10.0.8.0/24  -     subnet"}},
		{"network flow-log blue on", 0, []string{"on"}},
		{"vtep add edge --network blue --ip 10.0.7.9 --pa 192.0.2.7 --mac 02:00:5e:10:20:30", 0, []string{"192.0.2.7"}},
		{"vtep add edge --network blue --ip 10.0.7.9 --pa 192.0.2.7 --mac 02:00:5e:10:20:30 --as acme", 1, []string{"operators"}},
		{"vtep list --network blue", 0, []string{"edge", "10.0.7.9"}},
		{"group create web --network blue --rule 100_https_in_allow_tcp/443_from_any --rule 50_db_out_deny_tcp/5432-5440_to_10.0.8.0/24", 0,
			[]string{"50        db     out        deny    tcp/5432-5440  10.0.8.0/24\n100       https  in         allow   tcp/443        any"}},
		{"group create web --network blue", 4, []string{"set its rules"}},
		{"group set web --network blue --rules " + rules, 0, []string{"tcp/22  group:web"}},
		{"group set web --network blue --rule 100_https_in_allow_icmp/443_from_any", 2, []string{"ICMP type 443"}},
		{"group list --network blue", 0, []string{"web    blue     1      2"}},
		{"service create shop --network blue --ip 10.0.7.100 --port 443 --check --check-interval 2s", 0, []string{"10.0.7.100 tcp/443", "nobody is behind it"}},
		{"service create shop-2 --network blue --ip 10.0.7.9 --port 443", 4, []string{"VTEP edge"}},
		{"service backend set shop ghost --network blue", 3, []string{"ghost"}},
		{"service list --network blue", 0, []string{"every 2s"}},
		{"service set shop --network blue --affinity", 0, nil},
		{"service list --network blue", 0, []string{"shop     blue     10.0.7.100  tcp/443  none   true"}},
		{"port attach edge-7 --host h1 --tap eth0 --mac 02:00:5e:10:20:31 --network blue --as acme", 1, []string{"operators", "acme is a tenant"}},
		{"port attach edge-7 --host h1 --tap tap3 --mac 02:00:5e:10:20:31 --network blue", 3, []string{"h1"}}, // by the operator, who says --tenant
		{"port limit ghost --from 100M", 3, []string{"ghost"}},
		{"port limit ghost --from fast", 2, []string{"100M"}},
		{"port group ghost web", 3, []string{"ghost"}},
		{"network delete blue", 4, []string{"unpeer"}},
		{"network unpeer blue red", 0, nil},
		{"network delete blue", 4, []string{"service shop, and 1 more"}},
		{"vtep remove edge --network blue", 0, []string{"edge removed"}},
		{"network delete blue", 4, []string{"used by service shop; delete"}},
		{"service delete shop --network blue", 0, []string{"shop deleted"}},
		{"network route remove blue ::/0", 0, nil},
		{"group delete web --network blue", 0, []string{"web deleted"}},
		{"network delete blue", 0, []string{"blue deleted"}},
	} {
		args := strings.Fields(c.do)
		for i, a := range args {
			if i > 0 && args[i-1] == "--rule" {
				args[i] = strings.ReplaceAll(a, "_", " ")
			}
		}
		code, out := said(t, append(args, flags...)...)
		if code != c.code {
			t.Errorf("replug %s: exit %d, want %d: %s", c.do, code, c.code, out)
		}
		for _, s := range c.says {
			if !strings.Contains(out, s) {
				t.Errorf("replug %s says nothing of %q:\n%s", c.do, s, out)
			}
		}
	}
	_, out := said(t, append([]string{"network", "list", "-o", "json"}, flags...)...)
	var got struct {
		Networks []struct {
			Moniker string
			Subnets []struct{ Slaac bool }
		}
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Networks) != 1 || len(got.Networks[0].Subnets) != 2 || !got.Networks[0].Subnets[1].Slaac {
		t.Errorf("networks as JSON: %v: %s", err, out)
	}
}
