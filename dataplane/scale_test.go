package dataplane

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"replug/directory/vnet"
)

// A host of many ports: the agent's memory for each is bounded, and ten times as
// many take about ten times the CPU time to put in force, most of them alone in
// a network of their own, with groups and routes.
func TestManyPorts(t *testing.T) {
	const most = 25 << 10 // bytes a port
	few, _ := attachMany(t, 2000)
	many, bytes := attachMany(t, 10000)
	t.Logf("CPU time of 2,000 ports %s, of 10,000 %s; %d bytes each", few, many, bytes)
	if bytes > most {
		t.Errorf("%d bytes of the agent's memory for a port, at most %d", bytes, most)
	}
	if many > 15*few { // a square would be 25
		t.Errorf("2,000 ports took %s, 10,000 %s", few, many)
	}
}

// attachMany puts ports in force and says how long that took and what each costs.
func attachMany(t *testing.T, n int) (took time.Duration, bytes int) {
	w := newWorld(t)
	w.quiet = true
	f := newTable()
	ns := session(t, f, nil)
	w.furnish = func(r *rooms) { r.networks = ns }
	before := inUse()
	ps := w.begin()
	ns.kickIn = ps.kickIn
	begun := cpuTime(t)
	ns.OnResync()
	for i := range n {
		vni := vnet.VNI(0x10000 + i%(n-n/10)) // a tenth share one
		ns.OnGroup(vnet.Group{VNI: vni, Name: "web", Rules: []vnet.Rule{allow("https", 200, vnet.In), allow("ssh", 300, vnet.In)}})
		ns.OnMapping(mapping(vni, fmt.Sprintf("10.%d.%d.7", i>>8&0xff, i&0xff), "100.64.2.23", "h2", 7))
		ns.OnNetworkSynced(vni, int64(i))
	}
	for i := range n {
		in := intent()
		in.Port, in.ID, in.MAC = fmt.Sprintf("p-%d", i), vnet.PortID(i+1), vnet.PortMAC(uint32(i+1))
		in.Tap, in.Machine, in.Monitor = "", nil, ""
		in.Current = place("red", vnet.VNI(0x10000+i%(n-n/10)), "10.17.34.51", 7)
		in.Current.Groups = []string{"web"}
		in.Current.Routes = []vnet.Route{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), NextHop: netip.MustParseAddr("10.17.34.3")}}
		ps.set(in)
	}
	ns.OnSynced(int64(n))
	for {
		w.mu.Lock()
		done := len(w.rows) == n && len(w.published) == n
		w.mu.Unlock()
		if done {
			break
		}
		time.Sleep(time.Millisecond)
	}
	took = cpuTime(t) - begun
	for { // and are at rest
		all, err := os.ReadDir(w.dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == n {
			break
		}
		time.Sleep(time.Millisecond)
	}
	bytes = int(inUse()-before) / n
	w.end()
	return took, bytes
}

// cpuTime is what this process has used: others may keep the machine busy.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// inUse is the memory in use, goroutines' stacks included.
func inUse() uint64 {
	for range 4 {
		runtime.GC() // each halves the stacks of goroutines that have become quiet
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
