package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"log/slog"

	"replug/control"
	"replug/control/compute"
	"replug/directory/etcd"
	"replug/directory/pki"
	"replug/directory/store"
	"replug/directory/vnet"
)

// server runs a replug-server for commands, which finds a host and what else is written
// into its store, and returns their flags.
func server(t *testing.T, written ...*store.Txn) []string {
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
	rows := store.New(db.Client())
	written = append(written, (&store.Txn{}).Put(store.Hosts+"h1", vnet.HostInfo{Name: "h1", Address: netip.MustParseAddr("192.0.2.11"), PAPrefix: netip.MustParsePrefix("198.51.100.0/27"), MTU: 1500, Ports: 7, Images: []string{"tiny"}}))
	for _, txn := range written {
		_, err = rows.Commit(ctx, txn)
		must(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	leads := make(chan struct{})
	lead := sync.OnceFunc(func() { close(leads) }) // it may lose its lease and get it back
	srv, err := control.New(control.Config{
		Name: "s1", Address: l.Addr().String(), Store: rows, Cluster: id.ID, Era: id.Era, Alone: true,
		OnLead: func(now bool) {
			if now {
				lead()
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

// A step is a command, its exit code and what it prints.
type step struct {
	do   string
	code int
	says []string
}

// do runs commands, each with these flags.
func do(t *testing.T, flags []string, steps []step) {
	t.Helper()
	for _, c := range steps {
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
		out = strings.ReplaceAll(out, ":  ", ": ") // of JSON: one space or two
		for _, s := range c.says {
			if !strings.Contains(out, s) {
				t.Errorf("replug %s says nothing of %q:\n%s", c.do, s, out)
			}
		}
	}
}

// A person makes networks, routes, peers, a VTEP, groups and a service, looks at
// them, and takes all down again.
func TestPolicyJourney(t *testing.T) {
	flags := append(server(t), "--tenant", "acme")
	rules := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(rules, []byte("300 ssh in allow tcp/22 from group:web # only from one another\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	do(t, flags, []step{
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
		{"group set web --network blue", 2, []string{"--none"}},
		{"group list --network blue", 0, []string{"web    blue     1      2"}},
		{"service create shop --network blue --ip 10.0.7.100 --port 443 --check --check-interval 2s", 0, []string{"10.0.7.100 tcp/443", "nobody is behind it"}},
		{"service create shop-2 --network blue --ip 10.0.7.9 --port 443", 4, []string{"VTEP edge"}},
		{"service backend set shop ghost --network blue", 3, []string{"ghost"}},
		{"service list --network blue", 0, []string{"every 2s"}},
		{"port attach edge-7 --host h1 --tap eth0 --mac 02:00:5e:10:20:31 --network blue --as acme", 1, []string{"operators", "acme is a tenant"}},
		{"port attach edge-7 --host h7 --tap tap3 --mac 02:00:5e:10:20:31 --network blue", 3, []string{"h7"}}, // by the operator, who says --tenant
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
	})
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

// What changes a thing leaves alone what it says nothing of.
func TestSetKeepsTheRest(t *testing.T) {
	flags := append(server(t), "--tenant", "acme")
	do(t, flags, []step{
		{"tenant create acme", 0, nil},
		{"network create blue --subnet 10.0.7.0/24", 0, nil},
		{"port attach nic --host h1 --tap tap7 --mac 52:54:00:1a:2b:07 --network blue", 0, nil},
		{"service create shop --network blue --ip 10.0.7.100 --port 443 --check --check-interval 7s --check-port 8080 --check-fall 5", 0, nil},

		{"service set shop --network blue --affinity", 0, nil},
		{"service list --network blue", 0, []string{"every 7s  true"}},
		{"service set shop --network blue --check-interval 4s", 0, nil},
		{"service list --network blue", 0, []string{"every 4s  true"}},
		{"service show shop --network blue -o json", 0, []string{`"port": 8080`, `"fall": 5`, `"rise": 2`}},
		{"service set shop --network blue --check-interval 1s", 2, []string{"say a shorter timeout"}},
		{"service set shop --network blue --check-port 0 --check-interval 1s --check-timeout 500ms", 0, nil},
		{"service show shop --network blue -o json", 0, []string{`"port": 0`, `"0.500s"`, `"fall": 5`}},
		{"service set shop --network blue --affinity=false", 0, nil},
		{"service list --network blue", 0, []string{"every 1s  false"}},
		{"service set shop --network blue", 2, []string{"nothing to set"}},
		{"service set shop --network blue --check=false --check-rise 3", 2, []string{"--check=false"}},
		{"service set shop --network blue --check=false", 0, nil},
		{"service list --network blue", 0, []string{"none   false"}},
		{"service set shop --network blue --check", 0, nil},
		{"service list --network blue", 0, []string{"every 5s  false"}},

		{"service backend set shop nic --network blue --port 8443 --weight 70 --drain", 0, []string{"8443  70      draining"}},
		{"service backend set shop nic --network blue --weight 50", 0, []string{"8443  50      draining"}},
		{"service backend set shop nic --network blue --port 8444", 0, []string{"8444  50      draining"}},
		{"service backend set shop nic --network blue --drain=false", 0, []string{"8444  50      alive"}},

		{"type create small --image tiny --memory 128", 0, nil},
		{"pool set small --hold snapshot", 3, []string{"set its size first"}},
		{"pool set small --size 2 --hold snapshot", 0, []string{"snapshot"}},
		{"pool set small --size 3", 0, []string{"small  3     0      0        snapshot"}},
		{"pool set small --hold warm", 0, []string{"small  3     0      0        warm"}},
		{"pool set small", 2, []string{"--size"}},
		{"pool set small --size 0", 0, []string{"small  0"}},
		{"pool show small", 3, nil},

		{"port limit nic --from 100M --from-packets 50k --to 1G", 0, []string{"100Mbit/s 50kpacket/s  1Gbit/s"}},
		{"port limit nic --to 2G", 0, []string{"100Mbit/s 50kpacket/s  2Gbit/s"}},
		{"port limit nic --from 0", 0, []string{"50kpacket/s  2Gbit/s"}},
		{"port limit nic", 2, []string{"--none"}},
		{"port limit nic --none --to 1G", 2, []string{"--none"}},
		{"port limit nic --none", 0, []string{"no bound  no bound"}},
		{"port set nic --mtu 1300 --router", 0, []string{"1300  true"}},
		{"port set nic --mtu 1400", 0, []string{"1400  true"}},
		{"port set nic --router=false", 0, []string{"1400  false"}},
	})
}

// A list is longer than a message of gRPC by default, and has neither what the owners
// of VMs have said nor what became of each; nobody reads a password's hash again.
func TestManyVMs(t *testing.T) {
	const hash, content = "$6$saltsalt$aB3./xyz", "what only its owner reads"
	var written []*store.Txn
	for i := range 20 {
		vm := compute.VM{ID: fmt.Sprint("vm-", 700+i), Name: fmt.Sprint("web-", i), Tenant: "acme", Phase: compute.Ready, Error: strings.Repeat("too long ", 30_000),
			Settings: vnet.Document{User: "ann", PasswordHash: hash, Files: []vnet.File{{Path: "/etc/motd", Content: content}}}}
		vm.Step("first_boot", time.Now())
		written = append(written, (&store.Txn{}).Put(compute.Key(vm.ID), vm).Put(compute.NameKey("acme", vm.Name), vm.ID))
	}
	flags := append(server(t, written...), "--as", "acme", "-o", "json")
	says := func(command string, yes, no []string) {
		t.Helper()
		code, out := said(t, append(strings.Fields(command), flags...)...)
		if code != 0 {
			t.Errorf("replug %s: exit %d: %.200s", command, code, out)
		}
		for _, s := range append(yes, no...) {
			if strings.Contains(out, s) != slices.Contains(yes, s) {
				t.Errorf("replug %s: it says %q: %t", command, s, strings.Contains(out, s))
			}
		}
	}
	says("vm list", []string{`"web-19"`, "too long"}, []string{hash, content, `"first_boot"`, `"ann"`})
	says("vm show web-19", []string{`"web-19"`, content, `"first_boot"`, `"ann"`}, []string{hash})
}
