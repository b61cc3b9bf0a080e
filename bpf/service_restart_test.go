package bpf

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"testing"
)

// drainingReadBack: a backend that gets no new flows keeps its old ones over a
// restart, and they are reset when it dies or goes after that.
func drainingReadBack(t *testing.T, a *host) {
	for i, end := range []func(*Service){
		func(s *Service) { s.Backends[0].Dead = true },
		func(s *Service) { s.Backends = s.Backends[1:] },
	} {
		s := serviceOf(0, protoUDP, Backend{CA: caB, Port: 7951, Weight: 3})
		a.must(a.dp.SetService(s))
		flow := redA.frame(udpOf(caA, vips[0], uint16(37029+i), 8453, text(19)))
		a.send(redA, flow)
		s.Backends = []Backend{{CA: caB, Port: 7951, Weight: 3, Draining: true}, {CA: caA2, Port: 7951, Weight: 3}}
		a.must(a.dp.SetService(s))
		a.must(a.reload(func(*Options) {}))
		a.must(errors.Join(a.dp.SetService(s), a.dp.ForgetBackends()))
		if v, _ := a.send(redA, flow); v != actRedirect {
			t.Errorf("a drained backend's flow after a restart: verdict %d; %v", int32(v), a.drops())
		}
		end(&s)
		a.must(a.dp.SetService(s))
		before := a.drops()
		a.send(redA, flow)
		a.counted("a flow whose drained backend has ended after a restart", before, "dead_backend")
		a.must(errors.Join(a.dp.SetService(s), a.reload(func(*Options) {}), a.dp.DeleteService(s.ServiceKey), a.dp.ForgetBackends()))
		a.must(each(a.dp.objs.Backends, func(n uint32, b datapathBackend) error {
			if b.Flags != 0 {
				t.Errorf("backend %d is left: %+v", n, b)
			}
			return nil
		}))
	}
}

// tenantsReadBack: networks may have the same addresses. After a restart each drained
// backend has the number again that its own flows name, and dies with no other's.
func tenantsReadBack(t *testing.T, a *host) {
	flow := redA.frame(udpOf(caA, vips[0], 39017, 8453, text(19)))
	var all []Service
	for i := range uint32(8) {
		s := serviceOf(0, protoUDP, Backend{CA: caB, Port: 7951, Weight: 3})
		s.VNI = red + i
		a.must(a.dp.SetService(s))
		s.Backends = []Backend{{CA: caB, Port: 7951, Weight: 3, Draining: true}, {CA: caA2, Port: 7951, Weight: 3}}
		all = append(all, s)
	}
	a.send(redA, flow)
	for _, s := range all {
		a.must(a.dp.SetService(s))
	}
	a.must(a.reload(func(*Options) {}))
	for _, s := range all {
		s.Backends[0].Dead = s.VNI != red
		a.must(a.dp.SetService(s))
	}
	a.must(a.dp.ForgetBackends())
	if v, _ := a.send(redA, flow); v != actRedirect {
		t.Errorf("a drained backend's flow after its namesakes' death: verdict %d; %v", int32(v), a.drops())
	}
	all[0].Backends[0].Dead = true
	a.must(a.dp.SetService(all[0]))
	before := a.drops()
	a.send(redA, flow)
	a.counted("a flow whose own backend has died after a restart", before, "dead_backend")
	for _, s := range all {
		a.must(a.dp.DeleteService(s.ServiceKey))
	}
}

// servicesReadBack: a restarted agent finds the services, their flows go on, and
// what it takes out is gone.
func servicesReadBack(t *testing.T, a *host) {
	flow := redA.frame(udpOf(caA, vips[0], 30017, 8453, text(19)))
	_, before := a.send(redA, flow)
	keys := a.dp.Services()
	a.must(a.reload(func(*Options) {}))
	again := a.dp.Services()
	byPort := func(x, y ServiceKey) int { return x.VIP.Compare(y.VIP)*1000 + int(x.Protocol) - int(y.Protocol) }
	slices.SortFunc(keys, byPort)
	slices.SortFunc(again, byPort)
	if len(keys) < 4 || !reflect.DeepEqual(again, keys) {
		t.Errorf("services after a restart: %v, want %v", again, keys)
	}
	if v, out := a.send(redA, flow); v != actRedirect || !bytes.Equal(out, before) {
		t.Errorf("a flow after a restart: verdict %d, got\n%swant\n%s", int32(v), dump(out), dump(before))
	}
	for _, k := range keys {
		a.must(errors.Join(a.dp.DeleteService(k), a.dp.DeleteService(k)))
	}
	if left := a.dp.Services(); len(left) != 0 {
		t.Errorf("deleted, but there: %v", left)
	}
	used := 0
	a.must(each(a.dp.objs.Backends, func(_ uint32, b datapathBackend) error { used += int(b.Flags); return nil }))
	if used != 0 {
		t.Errorf("%d backends are left", used)
	}
	for name, s := range map[string]Service{
		"ICMP has no ports":          serviceOf(0, protoICMP, Backend{CA: caB, Port: 7951, Weight: 1}),
		"a backend of IPv6":          serviceOf(0, protoTCP, Backend{CA: caB6, Port: 7951, Weight: 1}),
		"a backend without a port":   serviceOf(0, protoTCP, Backend{CA: caB, Weight: 1}),
		"SCTP to another port":       serviceOf(0, protoSCTP, Backend{CA: caB, Port: 7951, Weight: 1}),
		"a backend that comes twice": serviceOf(0, protoTCP, Backend{CA: caB, Port: 7951, Weight: 1}, Backend{CA: caB, Port: 7951, Weight: 2}),
	} {
		if err := a.dp.SetService(s); !errors.Is(err, ErrService) {
			t.Errorf("%s: got %v, want ErrService", name, err)
		}
	}
}

// servicesFull: a service that doesn't fit takes nothing, however often it is tried,
// and the one that was to change goes on as it was and can be deleted. A drained
// backend that an earlier process numbered keeps its flows through all of that.
func servicesFull(t *testing.T, a *host) {
	taken := func() (rows, numbers, slots int) {
		t.Helper()
		a.must(each(a.dp.objs.Backends, func(_ uint32, b datapathBackend) error {
			rows += int(b.Flags & datapathBackendFlagBACKEND_USED)
			return nil
		}))
		return rows, len(a.dp.services.used), len(a.dp.services.slots.taken) - len(a.dp.services.slots.left)
	}
	small := serviceOf(0, protoUDP, Backend{CA: caB, Port: 7951, Weight: 3})
	a.must(a.dp.SetService(small))
	flow := redA.frame(udpOf(caA, vips[0], 38017, 8453, text(19)))
	a.send(redA, flow)
	small.Backends = []Backend{{CA: caB, Port: 7951, Draining: true}, {CA: caA2, Port: 7951, Weight: 3}}
	a.must(errors.Join(a.dp.SetService(small), a.reload(func(*Options) {})))
	a.dp.services.slots.size = uint32(slotCount(1)) * 2
	rows, numbers, slots := taken()

	large, other := small, serviceOf(1, protoUDP)
	for i := range 30 {
		large.Backends = append(large.Backends, Backend{CA: caB, Port: uint16(8011 + i), Weight: 3})
		other.Backends = append(other.Backends, Backend{CA: caB6, Port: uint16(8011 + i), Weight: 3})
	}
	for range 7 {
		for _, s := range []Service{large, other} {
			if err := a.dp.SetService(s); !errors.Is(err, ErrFull) {
				t.Fatalf("a service of %d slots into %d: got %v, want ErrFull", slotCount(len(s.Backends)), a.dp.services.slots.size, err)
			}
		}
	}
	if r, n, s := taken(); r != rows || n != numbers || s != slots {
		t.Errorf("what didn't fit took something: %d rows, %d numbers, %d tables; want %d, %d, %d", r, n, s, rows, numbers, slots)
	}
	if v, _ := a.send(redA, flow); v != actRedirect {
		t.Errorf("the flow of a service whose edit doesn't fit: verdict %d; %v", int32(v), a.drops())
	}
	a.must(errors.Join(a.dp.SetService(small), a.dp.ForgetBackends()))
	if v, _ := a.send(redA, flow); v != actRedirect {
		t.Errorf("its flow once it is as it was: verdict %d; %v", int32(v), a.drops())
	}
	a.must(a.dp.DeleteService(small.ServiceKey))
	if r, n, s := taken(); len(a.dp.Services()) != 0 || r+n+s != 0 {
		t.Errorf("all is deleted: services %v, %d rows, %d numbers, %d tables", a.dp.Services(), r, n, s)
	}
}
