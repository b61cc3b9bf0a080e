package host_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"replug/directory/directorypb"
	"replug/directory/pki"
	"replug/directory/server"
	"replug/directory/vnet"
	"replug/directory/wire"
	"replug/tests/lab"
)

// A directory is a server that a test plays: it hands out what the test says,
// to each host its own intents, and remembers what hosts report.
type directory struct {
	directorypb.UnimplementedDirectoryServer
	files pki.Files
	dir   string

	mu       sync.Mutex
	revision int64
	intents  map[string]vnet.Intent // by port
	mappings map[string]vnet.Mapping
	hosts    map[string]vnet.HostInfo
	statuses []vnet.Status
	streams  map[string]chan *directorypb.ToHost
	changed  chan struct{} // closed and replaced with each status
	server   *grpc.Server
}

func newDirectory(t *testing.T) *directory {
	t.Helper()
	d := &directory{
		dir: t.TempDir(), intents: map[string]vnet.Intent{}, mappings: map[string]vnet.Mapping{},
		hosts: map[string]vnet.HostInfo{}, streams: map[string]chan *directorypb.ToHost{}, changed: make(chan struct{}),
	}
	if err := pki.Init(d.dir, "test"); err != nil {
		t.Fatal(err)
	}
	d.issue(t, pki.Server, "s1")
	d.files = pki.DirFiles(d.dir, "s1")
	t.Cleanup(d.stop)
	return d
}

func (d *directory) issue(t *testing.T, kind pki.Kind, name string) pki.Files {
	t.Helper()
	f, err := pki.Issue(d.dir, pki.Request{Kind: kind, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

const port = 7443

// start serves in the lab's server namespace.
func (d *directory) start(t *testing.T, l *lab.Lab) {
	t.Helper()
	tls, err := d.files.ServerTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	var listener net.Listener
	err = l.Server().Do(func() (err error) {
		listener, err = net.Listen("tcp4", fmt.Sprint(l.ServerAddr(), ":", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(append(server.Keepalive(), grpc.Creds(credentials.NewTLS(tls)))...)
	directorypb.RegisterDirectoryServer(s, d)
	d.mu.Lock()
	d.server = s
	d.mu.Unlock()
	go func() { _ = s.Serve(listener) }()
}

// stop ends all streams, as a server that is killed does.
func (d *directory) stop() {
	d.mu.Lock()
	s := d.server
	d.server = nil
	d.mu.Unlock()
	if s != nil {
		s.Stop()
	}
}

func (d *directory) Attach(rpc directorypb.Directory_AttachServer) error {
	m, err := rpc.Recv()
	if err != nil {
		return err
	}
	info, err := wire.ToHost(m.GetHello().GetHost())
	if err != nil {
		return err
	}
	session := m.GetHello().GetSession()
	out := make(chan *directorypb.ToHost, 256)
	d.mu.Lock()
	d.hosts[info.Name] = info
	d.streams[info.Name] = out
	first := d.snapshot(info.Name)
	for name := range d.streams {
		d.send(name, &directorypb.ToHost{Message: &directorypb.ToHost_Host{Host: wire.FromHost(&info)}}, d.synced())
	}
	d.mu.Unlock()
	go d.hear(rpc, info.Name, session)
	for _, m := range first {
		if err := rpc.Send(m); err != nil {
			return err
		}
	}
	for {
		select {
		case m := <-out:
			if err := rpc.Send(m); err != nil {
				return err
			}
		case <-rpc.Context().Done():
			return nil
		}
	}
}

func (d *directory) hear(rpc directorypb.Directory_AttachServer, host string, session uint64) {
	for {
		m, err := rpc.Recv()
		if err != nil {
			return
		}
		if m.GetStatus() == nil {
			continue
		}
		s, err := wire.ToStatus(m.GetStatus(), host, session)
		if err != nil {
			continue
		}
		d.mu.Lock()
		d.statuses = append(d.statuses, s)
		close(d.changed)
		d.changed = make(chan struct{})
		d.send(host, &directorypb.ToHost{Message: &directorypb.ToHost_StatusStored{StatusStored: s.Seq}})
		d.mu.Unlock()
	}
}

// last is what was said last of a port.
func (d *directory) last(port string) vnet.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range slices.Backward(d.statuses) {
		if s.Port == port {
			return s
		}
	}
	return vnet.Status{}
}

// snapshot is everything, in the order of the protocol. d is locked.
func (d *directory) snapshot(host string) []*directorypb.ToHost {
	out := []*directorypb.ToHost{{Message: &directorypb.ToHost_Welcome{Welcome: &directorypb.Welcome{
		ClusterId: "test", Era: 3, Revision: d.revision, Resync: true}}}}
	for _, h := range d.hosts {
		out = append(out, &directorypb.ToHost{Message: &directorypb.ToHost_Host{Host: wire.FromHost(&h)}})
	}
	vnis := map[vnet.VNI]bool{}
	for _, m := range d.mappings {
		vnis[m.VNI] = true
		out = append(out, &directorypb.ToHost{Message: &directorypb.ToHost_Mapping{Mapping: wire.FromMapping(&m)}})
	}
	for _, in := range d.intents {
		vnis[in.Current.VNI] = true
		if in.Next != nil {
			vnis[in.Next.VNI] = true
		}
	}
	for v := range vnis {
		out = append(out, networkSynced(v))
	}
	for _, in := range d.intents {
		if in.Host == host {
			out = append(out, &directorypb.ToHost{Message: &directorypb.ToHost_Intent{Intent: wire.FromIntent(&in)}})
		}
	}
	return append(out, d.synced())
}

func networkSynced(v vnet.VNI) *directorypb.ToHost {
	return &directorypb.ToHost{Message: &directorypb.ToHost_NetworkSynced{NetworkSynced: &directorypb.NetworkSynced{Vni: uint32(v)}}}
}

func (d *directory) synced() *directorypb.ToHost {
	return &directorypb.ToHost{Message: &directorypb.ToHost_Synced{Synced: &directorypb.Synced{Revision: d.revision}}}
}

func (d *directory) send(host string, ms ...*directorypb.ToHost) {
	for _, m := range ms {
		if out := d.streams[host]; out != nil {
			out <- m
		}
	}
}

func mappingOf(in vnet.Intent) vnet.Mapping {
	return vnet.Mapping{VNI: in.Current.VNI, CA: in.Current.Addrs[0].CA, PA: in.PA, MAC: in.MAC,
		Epoch: in.Current.Epoch, Port: in.Port, Host: in.Host}
}

// put hands out an intent, with the mappings that go with it, in one revision.
func (d *directory) put(in vnet.Intent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.revision++
	old, known := d.intents[in.Port]
	d.intents[in.Port] = in
	var ms []*directorypb.ToHost
	if known && old.Current.Epoch != in.Current.Epoch {
		m := mappingOf(old)
		delete(d.mappings, fmt.Sprint(m.VNI, m.CA))
		ms = append(ms, &directorypb.ToHost{Message: &directorypb.ToHost_MappingGone{
			MappingGone: &directorypb.MappingKey{Vni: uint32(m.VNI), Ca: m.CA.String()}}})
	}
	m := mappingOf(in)
	d.mappings[fmt.Sprint(m.VNI, m.CA)] = m
	ms = append(ms, &directorypb.ToHost{Message: &directorypb.ToHost_Mapping{Mapping: wire.FromMapping(&m)}}, networkSynced(m.VNI))
	if in.Next != nil {
		ms = append(ms, networkSynced(in.Next.VNI))
	}
	for name := range d.streams {
		d.send(name, ms...)
	}
	d.send(in.Host, &directorypb.ToHost{Message: &directorypb.ToHost_Intent{Intent: wire.FromIntent(&in)}})
	for name := range d.streams {
		d.send(name, d.synced())
	}
}

// drop ends an intent that is gone.
func (d *directory) drop(in vnet.Intent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.intents, in.Port)
	d.send(in.Host, &directorypb.ToHost{Message: &directorypb.ToHost_IntentGone{IntentGone: in.Port}}, d.synced())
}

// await returns the first status of a port's epoch with one of the phases. A failure
// ends the test, as it ends a swap, unless it is one of them.
func (d *directory) await(ctx context.Context, t *testing.T, port string, e vnet.Epoch, phases ...vnet.StatusPhase) vnet.Status {
	t.Helper()
	for {
		d.mu.Lock()
		for _, s := range d.statuses {
			if s.Port == port && s.Epoch == e && slices.Contains(phases, s.Phase) {
				d.mu.Unlock()
				return s
			}
			if s.Port == port && s.Epoch == e && s.Phase == vnet.StatusFailed {
				d.mu.Unlock()
				t.Fatalf("port %s, epoch %s: failed, want %v: %+v", port, e, phases, s)
			}
		}
		changed, got := d.changed, fmt.Sprint(d.statuses)
		d.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("port %s, epoch %s: no status %v in time; got %s", port, e, phases, got)
		}
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func join(dir, name string) string { return filepath.Join(dir, name) }
