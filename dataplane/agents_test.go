package dataplane

import (
	"bufio"
	"encoding/json"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"replug/dataplane/channel"
	"replug/dataplane/imds"
	"replug/directory/vnet"
)

type worldAgents world

func (f *worldAgents) Open(id vnet.PortID, m vnet.Machine) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running[m.ID] {
		w.opened[id] = w.session
	}
}

func (f *worldAgents) Listens(id vnet.PortID) bool {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.guests[id]
	return g != nil && g.hears
}

// Moved lets the agent ask for a lease at once, whatever its client would notice.
func (f *worldAgents) Moved(id vnet.PortID, m vnet.Moved) bool {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.guests[id]
	if g == nil || !g.hears || g.gone || w.act("moved %d %s", id, m.Epoch) != nil {
		return false
	}
	if row := w.rows[id]; row.Epoch != m.Epoch || len(m.Addrs) == 0 || m.Addrs[0].Addr() != row.first().Addr {
		w.t.Errorf("told of %+v while %s is in force", m, row.Epoch)
	}
	g.ask()
	return true
}

// Beside cloud-init an agent hears by its channel what it hears by the metadata service.
func TestChannelBesideCloudInit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "guest.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := channel.New(channel.Config{})
	defer c.Shut()
	c.Open(23, path)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	in := bufio.NewScanner(conn)
	in.Scan() // the ping
	if _, err := conn.Write([]byte(`{"hello":"ab"}` + "\n")); err != nil {
		t.Fatal(err)
	}
	docs := documents{imds.New(imds.Config{}), c}
	d := &vnet.Document{Instance: "vm-23", Hostname: "web-1", RunOnce: []vnet.Command{{ID: "one", Command: "true"}}, Disks: []vnet.DataDisk{{ID: "1"}}}
	docs.Publish(23, vnet.NewEpoch(3, 7), d, imds.Guest{Personality: vnet.PersonalityCloudInit})
	var m vnet.ToGuest
	if !in.Scan() || json.Unmarshal(in.Bytes(), &m) != nil || m.Config == nil {
		t.Fatalf("told %q (%v)", in.Text(), in.Err())
	}
	if got := m.Config; got.Epoch != vnet.NewEpoch(3, 7) || got.Instance != "vm-23" || len(got.Disks) != 1 || got.Hostname != "" || got.RunOnce != nil {
		t.Errorf("told %+v", got)
	}
}

// A guest that was resumed is ready for its next place once its agent has said that
// it is there; one that says nothing is waited for a second.
func TestResumedAgentIsWaitedFor(t *testing.T) {
	for name, says := range map[string]bool{"says hello": true, "says nothing": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				in, g := resting(w)
				in.Machine.Personality = vnet.PersonalityAgent
				ps := w.begin()
				ps.set(in)
				settle(time.Minute)
				in = prepared(in)
				ps.set(in)
				settle(stretches / 2)
				if got := w.phases(in.Next.Epoch); !w.running["vm-23"] || len(got) != 0 {
					t.Fatalf("running %t, staged %v before its agent was there", w.running["vm-23"], got)
				}
				w.mu.Lock()
				g.hears = says
				w.mu.Unlock()
				if says {
					ps.get(23).kick()
				} else {
					settle(stretches)
				}
				settle(10 * time.Millisecond)
				if got := w.phases(in.Next.Epoch); !slices.Equal(got, []vnet.StatusPhase{vnet.StatusPrepared}) {
					t.Errorf("staged: %v", got)
				}
			})
		})
	}
}

// A guest whose agent listens is told after the flip, and its link is not cut. One
// that does nothing of it, or has gone meanwhile, is bounced as any other.
func TestAgentIsTold(t *testing.T) {
	for _, c := range []struct {
		name  string
		guest func(*guest)
		rung  string
		acts  []string
		hops  []string
	}{
		{"follows", func(*guest) {}, "agent", []string{"row 23 3.8 vni 0x123457", "moved 23 3.8", "publish 23 3.8"},
			[]string{"stage", "flip", "agent_told", "dhcp", "seen", "publish", "report"}},
		{"does nothing", func(g *guest) { g.asks, g.hears = 1500e6, true }, "bounce 20ms",
			[]string{"row 23 3.8 vni 0x123457", "moved 23 3.8", "link 23 false", "link 23 true", "publish 23 3.8"},
			[]string{"stage", "flip", "agent_told", "no proof by agent", "link_down", "link_up", "dhcp", "seen", "publish", "report"}},
		{"has gone", func(g *guest) { g.gone = true }, "bounce 20ms",
			[]string{"row 23 3.8 vni 0x123457", "link 23 false", "link 23 true", "publish 23 3.8"},
			[]string{"stage", "flip", "link_down", "link_up", "dhcp", "seen", "publish", "report"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				in := intent()
				in.Machine = machine(vnet.PowerOn)
				g := w.guestAt(in, "10.17.34.51")
				w.running["vm-23"] = true
				g.hears = true
				c.guest(g)
				ps := w.begin()
				in = w.move(ps, in)
				w.inOrder(c.acts...)
				s := w.last(in.Current.Epoch)
				var hops []string
				for _, h := range s.Hops {
					hops = append(hops, h.Name)
				}
				if s.Rung != c.rung || !slices.Equal(hops, c.hops) || g.ca != in.Current.Addrs[0].CA {
					t.Errorf("guest at %s by %q, hops %q, want %q", g.ca, s.Rung, hops, c.hops)
				}
				if c.rung == "agent" && g.cuts() != 0 {
					t.Errorf("link was cut %d times", g.cuts())
				}
			})
		})
	}
}
