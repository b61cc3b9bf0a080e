package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"replug/directory/vnet"
)

// TestMain runs the tests in a network namespace of their own, which is the guest's, and
// one of mounts, which are gone with it.
func TestMain(m *testing.M) {
	const inside = "REPLUG_GUEST_TEST_NETNS"
	if root := os.Getenv(agentRoot); root != "" {
		os.Exit(runAgent(root))
	}
	if os.Getenv(inside) != "" {
		if err := setUpByName("lo"); err != nil {
			fmt.Fprintf(os.Stderr, "set lo up: %v\n", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "tests in a network namespace (needs root): %v\n", err)
		os.Exit(1)
	}
}

// agentRoot makes the test's program an agent below that root, in a process of its own.
const agentRoot = "REPLUG_GUEST_TEST_AGENT"

func runAgent(root string) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	c := Default()
	c.Interface, c.Root, c.DHCP, c.Wait = "guest0", root, DHCPOwn, time.Second
	if err := Run(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A world is a guest's NIC (a veth in the test's namespace) and, in another
// namespace, the host that answers on its other end.
type world struct {
	t      *testing.T
	ns     netns.NsHandle
	nl     *netlink.Handle // in the host's namespace
	host   netlink.Link    // the host's end
	nic    string          // the guest's end
	root   string
	mu     sync.Mutex
	lease  lease
	nak    bool
	mute   bool                         // no DHCPv4
	asked  map[dhcpv4.TransactionID]int // REQUESTs, by exchange
	doc    *vnet.Document
	newDoc chan struct{} // closed when doc changes

	dhcp    chan *dhcpv4.DHCPv4 // what the guest sent
	begun   chan *dhcpv4.DHCPv4 // of that, what began an exchange: a client that hears nothing for a moment repeats itself
	polls   chan *http.Request
	reports chan vnet.GuestReport
	lines   chan string // the agent's log
	refuse  atomic.Int32
	silent  atomic.Bool // it takes requests and never answers
}

const (
	gateway = "10.37.91.254"
	wait    = 30 * time.Second // for what takes milliseconds on an idle machine
)

func newWorld(t *testing.T) *world {
	t.Helper()
	goleak.VerifyNone(t)
	t.Cleanup(func() { goleak.VerifyNone(t) })
	w := &world{t: t, nic: "guest0", root: t.TempDir(), newDoc: make(chan struct{}),
		dhcp: make(chan *dhcpv4.DHCPv4, 999), begun: make(chan *dhcpv4.DHCPv4, 999), asked: map[dhcpv4.TransactionID]int{}, polls: make(chan *http.Request, 999),
		reports: make(chan vnet.GuestReport, 99), lines: make(chan string, 999)}
	w.give("10.37.91.17/24")
	w.inHost(func() {
		var err error
		if w.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			t.Fatal(err)
		}
	})
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: w.nic}, PeerName: "host0", PeerNamespace: netlink.NsFd(w.ns)}
	check(t, netlink.LinkAdd(pair))
	t.Cleanup(func() { netlink.LinkDel(pair); w.nl.Close(); w.ns.Close() })
	var err error
	w.host, err = w.nl.LinkByName("host0")
	check(t, err)
	check(t, w.nl.LinkSetUp(w.host))
	lo, err := w.nl.LinkByName("lo")
	check(t, err)
	check(t, w.nl.LinkSetUp(lo))
	check(t, w.nl.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("169.254.169.254/32"))}))
	check(t, w.nl.AddrAdd(w.host, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(gateway + "/22"))}))
	w.serve()
	return w
}

// inHost runs f on a thread in the host's namespace, which it makes at first.
func (w *world) inHost(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		if w.ns == 0 {
			ns, err := netns.New()
			if err != nil {
				w.t.Errorf("new network namespace: %v (needs root)", err)
				return
			}
			w.ns = ns
		} else if err := netns.Set(w.ns); err != nil {
			w.t.Error(err)
			return
		}
		f()
	}()
	<-done
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// serve starts the DHCP and metadata servers of the host.
func (w *world) serve() {
	var server *server4.Server
	var l net.Listener
	w.inHost(func() {
		var err error
		if server, err = server4.NewServer("host0", &net.UDPAddr{Port: 67}, w.answer); err != nil {
			w.t.Error(err)
		}
		if l, err = net.Listen("tcp", "169.254.169.254:80"); err != nil {
			w.t.Error(err)
		}
	})
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve() })
	ctx, cancel := context.WithCancel(context.Background())
	h := &http.Server{Handler: http.HandlerFunc(w.imds), BaseContext: func(net.Listener) context.Context { return ctx }}
	wg.Go(func() { h.Serve(l) })
	w.t.Cleanup(func() { cancel(); server.Close(); h.Close(); wg.Wait() })
}

// give sets the lease that the host hands out from now on.
func (w *world) give(prefix string, routes ...route) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lease = lease{addr: netip.MustParsePrefix(prefix), routes: routes, valid: 33 * time.Hour, mtu: 1432,
		dns: []netip.Addr{netip.MustParseAddr("10.37.91.53")}, domain: "red.example"}
}

func (w *world) answer(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
	w.dhcp <- m
	w.mu.Lock()
	n, known := w.asked[m.TransactionID]
	if m.MessageType() == dhcpv4.MessageTypeRequest {
		n++
	}
	w.asked[m.TransactionID] = n
	l, nak, mute := w.lease, w.nak, w.mute
	w.mu.Unlock()
	if !known {
		w.begun <- m
	}
	if mute {
		return
	}
	kind := dhcpv4.MessageTypeOffer
	if m.MessageType() == dhcpv4.MessageTypeRequest {
		kind = dhcpv4.MessageTypeAck
		if asked := v4(m.RequestedIPAddress()); nak || asked.IsValid() && !asked.IsUnspecified() && asked != l.addr.Addr() {
			kind = dhcpv4.MessageTypeNak
		}
	}
	r, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(l.addr.Addr().AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(gateway))),
		dhcpv4.WithNetmask(net.CIDRMask(l.addr.Bits(), 32)), dhcpv4.WithRouter(net.ParseIP(gateway)),
		dhcpv4.WithLeaseTime(uint32(l.valid.Seconds())),
		dhcpv4.WithOption(dhcpv4.OptDomainName(l.domain)),
		dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(l.mtu >> 8), byte(l.mtu)}))
	if err != nil {
		w.t.Error(err)
		return
	}
	for _, a := range l.dns {
		dhcpv4.WithDNS(a.AsSlice())(r)
	}
	var static dhcpv4.Routes
	for _, x := range l.routes {
		static = append(static, &dhcpv4.Route{Dest: ipNet(x.to), Router: x.via.AsSlice()})
	}
	if len(static) > 0 {
		r.UpdateOption(dhcpv4.OptClasslessStaticRoute(static...))
	}
	conn.WriteTo(r.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
}

// gaveUp reports whether the guest's client has heard nothing to the last REQUEST of an
// exchange that it makes, and so had to begin another.
func (w *world) gaveUp(m *dhcpv4.DHCPv4) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked[m.TransactionID] == 4
}

// publish lets the metadata service serve d.
func (w *world) publish(d vnet.Document) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.doc = &d
	close(w.newDoc)
	w.newDoc = make(chan struct{})
}

func (w *world) imds(rw http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Metadata") != "true" {
		w.t.Errorf("%s %s without the Metadata header", r.Method, r.URL)
	}
	if w.silent.Load() {
		<-r.Context().Done()
		return
	}
	if n := w.refuse.Load(); n != 0 {
		rw.WriteHeader(int(n))
		return
	}
	if r.Method == http.MethodPost {
		var g vnet.GuestReport
		if err := json.NewDecoder(r.Body).Decode(&g); err != nil {
			w.t.Errorf("report: %v", err)
		}
		w.reports <- g
		rw.WriteHeader(http.StatusNoContent)
		return
	}
	w.polls <- r
	since, err := vnet.ParseEpoch(r.URL.Query().Get("since"))
	if err != nil {
		w.t.Errorf("poll %s: %v", r.URL, err)
	}
	hold, _ := time.ParseDuration(r.URL.Query().Get("wait") + "s")
	end := time.After(hold)
	for {
		w.mu.Lock()
		d, changed := w.doc, w.newDoc
		w.mu.Unlock()
		if d != nil && d.Epoch > since {
			json.NewEncoder(rw).Encode(d)
			return
		}
		select {
		case <-changed:
		case <-end:
			rw.WriteHeader(http.StatusNoContent)
			return
		case <-r.Context().Done():
			return
		}
	}
}

// start runs an agent until the test ends, or the returned function is called.
func (w *world) start(change ...func(*Config)) (stop func()) {
	w.t.Helper()
	c := Default()
	c.Interface, c.Root, c.DHCP, c.Wait = w.nic, w.root, DHCPOwn, time.Second
	r, wr := io.Pipe()
	c.Log = wr
	for _, f := range change {
		f(&c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := Run(ctx, c); err != nil {
			w.t.Errorf("Run: %v", err)
		}
		wr.Close()
	})
	wg.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, err := r.Read(b)
			if err != nil {
				return
			}
			w.t.Log(strings.TrimSpace(string(b[:n])))
			w.lines <- string(b[:n])
		}
	})
	stop = func() { cancel(); wg.Wait() }
	w.t.Cleanup(stop)
	return stop
}

// said waits until the agent has logged a line with s in it.
func (w *world) said(s string) {
	w.t.Helper()
	late := time.After(wait) // other lines don't lengthen it
	for {
		select {
		case l := <-w.lines:
			if strings.Contains(l, s) {
				return
			}
		case <-late:
			w.t.Fatalf("no line with %s in %s", s, wait)
		}
	}
}

// saidFirst waits for a line with s in it, and wants none with other in it before.
func (w *world) saidFirst(s, other string) {
	w.t.Helper()
	late := time.After(wait)
	for {
		select {
		case l := <-w.lines:
			switch {
			case strings.Contains(l, other):
				w.t.Errorf("before %s: %s", s, l)
			case strings.Contains(l, s):
				return
			}
		case <-late:
			w.t.Fatalf("no line with %s in %s", s, wait)
		}
	}
}

// next takes the next of c.
func next[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	var v T
	select {
	case v = <-c:
	case <-time.After(wait):
		t.Fatalf("no %s in %s", what, wait)
	}
	return v
}

// flap takes the carrier away from the guest for a time.
func (w *world) flap(d time.Duration) {
	check(w.t, w.nl.LinkSetDown(w.host))
	time.Sleep(d) // the length of the flap, not a wait for something
	check(w.t, w.nl.LinkSetUp(w.host))
}

func setUpByName(nic string) error {
	l, err := netlink.LinkByName(nic)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// addrs is what the kernel has on the guest's NIC.
func (w *world) addrs() string {
	l, err := netlink.LinkByName(w.nic)
	check(w.t, err)
	list, err := netlink.AddrList(l, netlink.FAMILY_V4)
	check(w.t, err)
	var out []string
	for _, a := range list {
		out = append(out, a.IPNet.String())
	}
	return strings.Join(out, " ")
}

func (w *world) read(path string) string {
	b, _ := os.ReadFile(filepath.Join(w.root, path))
	return string(b)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func drain[T any](c <-chan T) (out []T) {
	for {
		select {
		case v := <-c:
			out = append(out, v)
		default:
			return out
		}
	}
}
