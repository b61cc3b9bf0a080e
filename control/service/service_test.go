package service

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"replug/directory/etcd"
	"replug/directory/store"
	"replug/directory/vnet"
)

const red vnet.VNI = 70001

type bench struct {
	*Manager
	t *testing.T
}

func newBench(t *testing.T) *bench {
	t.Helper()
	db, err := etcd.Open(context.Background(), etcd.Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return &bench{&Manager{Store: store.New(db.Client())}, t}
}

func (b *bench) must(txn *store.Txn, err error) {
	b.t.Helper()
	if err == nil && !txn.Empty() {
		_, err = b.Store.Commit(context.Background(), txn)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

func ca(s string) vnet.CA { return vnet.CA{Addr: netip.MustParseAddr(s)} }

func web() vnet.Service {
	return vnet.Service{VNI: red, Name: "web", VIP: ca("10.17.34.200"), Port: 443, Protocol: vnet.TCP, Check: &vnet.Check{}, Backends: []vnet.Backend{
		{Member: "p7", CA: ca("10.17.34.7"), Port: 8443, Weight: 70}, {Member: "p9", CA: ca("10.17.34.9"), Weight: 100},
	}}
}

// behind prints who is behind a service.
func (b *bench) behind(name string) string {
	b.t.Helper()
	row, err := b.Get(context.Background(), red, name)
	if err != nil {
		b.t.Fatal(err)
	}
	var out []string
	for _, x := range row.Value.Backends {
		s := fmt.Sprintf("%s %s:%d/%d", x.Member, x.CA, x.Port, x.Weight)
		if x.Draining {
			s += " draining"
		}
		if x.Dead {
			s += " dead"
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

func TestComplete(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*vnet.Service)
		says   string
	}{
		{"as it is", func(*vnet.Service) {}, ""},
		{"no check", func(s *vnet.Service) { s.Check = nil }, ""},
		{"SCTP, checked by TCP", func(s *vnet.Service) {
			s.Protocol, s.Check.Port, s.Backends[0].Port = vnet.SCTP, 7070, 443
		}, ""},
		{"SCTP to another port", func(s *vnet.Service) { s.Protocol, s.Check, s.Backends[1].Port = vnet.SCTP, nil, 444 }, "checksum"},
		{"UDP without a port to check", func(s *vnet.Service) { s.Protocol = vnet.UDP }, "which TCP port"},
		{"ICMP", func(s *vnet.Service) { s.Protocol = vnet.ICMP }, "tcp, udp or sctp"},
		{"port 0", func(s *vnet.Service) { s.Port = 0 }, "1 to 65535"},
		{"no address", func(s *vnet.Service) { s.VIP = vnet.CA{} }, "none is given"},
		{"a backend twice", func(s *vnet.Service) { s.Backends[1].Member = "p7" }, "twice"},
		{"too heavy", func(s *vnet.Service) { s.Backends[1].Weight = 1001 }, "at most 1000"},
		{"the other family", func(s *vnet.Service) { s.Backends[1].CA = ca("fd17::9") }, "family of 10.17.34.200"},
		{"a timeout above the interval", func(s *vnet.Service) { s.Check.Interval, s.Check.Timeout = time.Second, 7*time.Second }, "not above"},
		{"too eager", func(s *vnet.Service) { s.Check.Interval = 7 * time.Millisecond }, "100ms"},
		{"never dead", func(s *vnet.Service) { s.Check.Fall = -7 }, "1 to 100"},
		{"too many backends", func(s *vnet.Service) { s.Backends = make([]vnet.Backend, MaxBackends+1) }, "none left of 256"},
	} {
		s := web()
		c.change(&s)
		if err := complete(&s); (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want it to say %q", c.name, err, c.says)
		}
	}
	s := web()
	given := s.Check
	if err := complete(&s); err != nil || *s.Check != (vnet.Check{Interval: 5 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 3}) || s.Backends[1].Port != 443 {
		t.Errorf("completed %+v, check %+v, %v", s, s.Check, err)
	}
	if *given != (vnet.Check{}) {
		t.Errorf("the caller's check was changed: %+v", given)
	}
}

func TestService(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	b.must(b.Create(ctx, web()))
	for name, change := range map[string]func(*vnet.Service){
		"the name":    func(s *vnet.Service) { s.Port = 80 },
		"the address": func(s *vnet.Service) { s.Name = "web-2" },
	} {
		s := web()
		change(&s)
		if _, err := b.Create(ctx, s); !errors.Is(err, ErrExists) {
			t.Errorf("%s again: %v", name, err)
		}
	}
	tls := web()
	tls.Name, tls.Port = "web-tls", 80
	b.must(b.Create(ctx, tls))
	far := web()
	far.Name, far.VIP = "z-far", ca("10.17.34.201") // the last by name
	b.must(b.Create(ctx, far))

	b.must(b.SetBackend(ctx, red, "web", vnet.Backend{Member: "p11", CA: ca("10.17.34.11"), Weight: 30}))
	b.must(b.SetBackend(ctx, red, "web", vnet.Backend{Member: "p7", CA: ca("10.17.34.7"), Port: 8443, Weight: 70, Draining: true}))
	b.must(b.RemoveBackend(ctx, red, "web", "p9"))
	if got := b.behind("web"); got != "p7 10.17.34.7:8443/70 draining, p11 10.17.34.11:443/30" {
		t.Errorf("behind web: %s", got)
	}
	if _, err := b.RemoveBackend(ctx, red, "web", "p9"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	// What a check has found out lasts as long as what it asked.
	row, _ := b.Get(ctx, red, "web")
	row.Value.Backends[0].Dead, row.Value.Backends[1].Dead = true, true
	b.must((&store.Txn{}).Put(row.Key, row.Value), nil)
	b.must(b.SetBackend(ctx, red, "web", vnet.Backend{Member: "p7", CA: ca("10.17.34.7"), Port: 8443, Weight: 10}))
	b.must(b.SetBackend(ctx, red, "web", vnet.Backend{Member: "p11", CA: ca("10.17.34.11"), Port: 8444, Weight: 30}))
	if got := b.behind("web"); got != "p7 10.17.34.7:8443/10 dead, p11 10.17.34.11:8444/30" {
		t.Errorf("after new weights: %s", got)
	}
	set := func(check *vnet.Check) {
		t.Helper()
		b.must(b.Set(ctx, red, "web", func(s *vnet.Service) error { s.Affinity, s.Check = true, check; return nil }))
	}
	set(&vnet.Check{Interval: 7 * time.Second})
	if got := b.behind("web"); got != "p7 10.17.34.7:8443/10 dead, p11 10.17.34.11:8444/30" {
		t.Errorf("after another interval: %s", got)
	}
	set(nil)
	if row, _ = b.Get(ctx, red, "web"); !row.Value.Affinity || row.Value.Check != nil || row.Value.Backends[0].Dead {
		t.Errorf("after it was set: %+v", row.Value)
	}
	s, heir, gone, err := b.Delete(ctx, red, "web")
	b.must(gone, err)
	if s.VIP != ca("10.17.34.200") || heir != "web-tls" {
		t.Errorf("deleted %s at %s, heir %q", s.Name, s.VIP, heir)
	}
	if _, heir, _, err := b.Delete(ctx, red, "web-tls"); heir != "" || err != nil {
		t.Errorf("the last one of an address: heir %q, %v", heir, err)
	}
}

// Seats are left, and taken again as they were, with the address of now.
func TestSeats(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	b.must(b.Create(ctx, web()))
	other, six := web(), web()
	other.Name, other.Port = "other", 80
	six.Name, six.VIP, six.Backends = "six", ca("fd17::200"), nil
	b.must(b.Create(ctx, other))
	b.must(b.Create(ctx, six))
	b.must(b.RemoveBackend(ctx, red, "other", "p9"))
	seats, left, err := b.Leave(ctx, red, "p9")
	if err != nil || len(seats) != 1 || seats[0].Service != "web" {
		t.Fatalf("seats of p9: %+v, %v", seats, err)
	}
	// Somebody puts it behind another service meanwhile: the leave must see it.
	b.must(b.SetBackend(ctx, red, "other", vnet.Backend{Member: "p9", CA: ca("10.17.34.9"), Weight: 9}))
	if _, err := b.Store.Commit(ctx, left); !errors.Is(err, store.ErrConflict) {
		t.Errorf("leave by what was: %v", err)
	}
	seats, left, err = b.Leave(ctx, red, "p9")
	b.must(left, err)
	if w, o := b.behind("web"), b.behind("other"); w != "p7 10.17.34.7:8443/70" || o != "p7 10.17.34.7:8443/70" {
		t.Errorf("behind web: %s; other: %s", w, o)
	}
	seats[0].Backend.Dead = true
	seats = append(seats, Seat{"six", vnet.Backend{Weight: 66}}, Seat{"gone", vnet.Backend{Weight: 7}}, Seat{"web", vnet.Backend{Weight: 7}})
	cas := []vnet.CA{ca("10.17.34.99"), ca("fd17::99")}
	b.must(b.Join(ctx, red, "p9", cas, seats[:4]))
	b.must(b.Join(ctx, red, "p9", cas, seats[4:])) // is there already
	for name, want := range map[string]string{
		"web":   "p7 10.17.34.7:8443/70, p9 10.17.34.99:443/100",
		"other": "p7 10.17.34.7:8443/70, p9 10.17.34.99:80/9",
		"six":   "p9 fd17::99:443/66",
	} {
		if got := b.behind(name); got != want {
			t.Errorf("behind %s: %s, want %s", name, got, want)
		}
	}
	b.must(b.Join(ctx, red, "p77", cas[:1], []Seat{{"six", vnet.Backend{}}}))
	sctp := web()
	sctp.Name, sctp.Protocol, sctp.Check, sctp.Backends = "sctp", vnet.SCTP, nil, nil
	b.must(b.Create(ctx, sctp))
	b.must(b.Join(ctx, red, "p9", cas, []Seat{{"sctp", vnet.Backend{Port: 8443, Weight: 7}}}))
	if got := b.behind("sctp"); got != "p9 10.17.34.99:443/7" {
		t.Errorf("behind sctp: %s", got)
	}
	if got := b.behind("six"); got != "p9 fd17::99:443/66" {
		t.Errorf("joined without an address of the family: %s", got)
	}
}
