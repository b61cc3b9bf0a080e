// Package dataplane is the agent of one host: it makes what the directory says
// true here. It loads the BPF datapath, reconciles ports and machines to their
// intents, moves running guests between networks, answers their DHCP and serves
// their metadata, and reports what it has made true.
//
// What is in force stands in the pinned datapath, not in the agent: it may be
// killed and started again at any time, and goes on from there. While no server
// can be reached, traffic, leases and metadata go on; only changes wait.
//
// It does not decide where a port should be, and knows no store. The rooms below
// this one don't know each other; files here wire them: maps.go the datapath,
// devices.go the devices, machines.go the hypervisor, guests.go and router.go what guests ask and hear.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	stdmaps "maps"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"replug/dataplane/channel"
	"replug/dataplane/compute"
	"replug/dataplane/imds"
	"replug/dataplane/netdev"
	"replug/dataplane/qmp"
	"replug/dataplane/trap"
	"replug/directory/client"
	"replug/directory/pki"
	"replug/directory/vnet"
)

// A Host is the agent, made by [New].
type Host struct {
	config   Config
	log      *slog.Logger
	registry *prometheus.Registry
	metrics  *Metrics

	state    *stateDir
	underlay *underlay
	maps     *maps
	qemu     *compute.QEMU // nil: no machines
	sender   *trap.Sender
	imds     *imds.Server
	channel  *channel.Server
	ports    *ports
	networks *networks
	checks   *checks
	sweeper  *sweeper
	asks     *diagnosis
	flowLog  *flowLogger
	client   *client.Client
	running  atomic.Pointer[ports] // for callbacks that may come before
	close    []func() error        // in reverse order
}

// New puts the datapath in force and makes everything ready. The ports of an
// earlier session carry traffic all the time. [Host.Run] must follow, or Close.
func New(ctx context.Context, c Config, log *slog.Logger) (*Host, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	h := &Host{config: c, log: log, registry: prometheus.NewRegistry()}
	h.metrics = NewMetrics(h.registry)
	h.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, step := range []func(context.Context) error{h.openState, h.openDatapath, h.openMachines, h.openPorts, h.openDiagnosis, h.openClient} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, h.Close())
		}
	}
	return h, nil
}

// Close lets go of everything. What is in force stays: ports, taps, machines.
func (h *Host) Close() error {
	var errs []error
	for i := len(h.close) - 1; i >= 0; i-- {
		errs = append(errs, h.close[i]())
	}
	h.close = nil
	return errors.Join(errs...)
}

func (h *Host) openState(context.Context) error {
	if err := Missing(h.config.BPFFS); err != nil {
		return err
	}
	state, err := openState(h.config.StateDir)
	if err != nil {
		return err
	}
	h.state = state
	h.close = append(h.close, state.close)
	return nil
}

func (h *Host) openDatapath(context.Context) error {
	u, err := plug(h.config.Uplink, h.config.PAPrefix)
	if err != nil {
		return err
	}
	if h.maps, err = loadMaps(u, &h.config, h.log); err != nil {
		return fmt.Errorf("put the datapath in force: %w", err)
	}
	h.underlay, h.config.PAPrefix = u, u.prefix
	h.registry.MustRegister(h.maps)
	h.close = append(h.close, h.maps.close)
	return nil
}

func (h *Host) openMachines(ctx context.Context) error {
	if h.config.Memory == 0 {
		return nil
	}
	q, err := compute.New(ctx, compute.Config{
		Dir: h.config.StateDir, Images: h.config.Images, ExtraArgs: h.config.QEMUArgs, Log: h.log, Accel: h.config.Accel,
		Grace:  10 * time.Second,
		Open:   func(ctx context.Context, s string) (compute.Monitor, error) { return qmp.Dial(ctx, s) },
		OnExit: h.machineEnded,
	})
	if err != nil {
		return fmt.Errorf("take over the machines: %w", err)
	}
	h.qemu = q
	h.close = append(h.close, q.Close)
	return nil
}

// machineEnded lets the machine's port look.
func (h *Host) machineEnded(e compute.Exit) {
	if !e.Asked {
		h.log.Warn("machine ended by itself", "vm", e.ID, "said", e.Said)
	}
	if ps := h.running.Load(); ps != nil {
		ps.kick()
	}
}

func (h *Host) openPorts(context.Context) error {
	recs, err := newRecords(h.config.StateDir + "/ports")
	if err != nil {
		return err
	}
	h.networks, err = newNetworks(h.maps, neighbours{h.log}, h.config.Name, h.metrics, h.log)
	if err != nil {
		return err
	}
	h.networks.own = h.underlay.uplink.Addr
	h.sender, err = trap.NewSender(func(id vnet.PortID) (vnet.Epoch, bool) { return h.ports.epoch(id) })
	if err != nil {
		return err
	}
	h.close = append(h.close, h.sender.Close)
	h.openMetadata()
	var driver compute.Driver
	if h.qemu != nil {
		driver = h.qemu
	}
	h.checks = newChecks(h.log)
	accounts := newAccounts(h.registry)
	accounts.tally = h.maps.Tally
	ps, err := newPorts(rooms{
		accounts: accounts, moved: h.checks.changed,
		datapath: h.maps, taps: taps{h.underlay}, machines: machines{driver}, links: links{driver, h.underlay.mtu}, docs: documents{h.imds, h.channel},
		prober: prober{h.sender}, router: routers{h.sender}, resetter: resets{h.sender}, networks: h.networks, agents: agents{h.channel, driver}, records: recs, rungs: newRungs(), metrics: h.metrics,
		mtu: h.underlay.mtu, report: func(s vnet.Status) { h.client.Report(s) },
	}, h.log)
	if err != nil {
		return err
	}
	h.networks.kickIn, h.networks.tapOf, h.ports = ps.kickIn, ps.tapOf, ps
	accounts.here = ps.networksOf
	accounts.begin(slices.Collect(stdmaps.Keys(ps.found)))
	if h.config.PortMetrics {
		h.registry.MustRegister(portCounters{h.maps.Tally, ps.inForce})
	}
	h.sweeper = newSweeper(h.maps, accounts, h.registry, h.log)
	h.checks.services, h.checks.find, h.checks.send = h.networks.services.list, ps.find, h.probe
	h.checks.report = func(v vnet.Health) { h.client.ReportHealth(v) }
	h.checks.forget = func(v vnet.Health) { h.client.ForgetHealth(v.VNI, v.Service, v.Member) }
	h.networks.services.changed = h.checks.changed
	return nil
}

// openMetadata makes the two ways by which guests get documents and report on them.
func (h *Host) openMetadata() {
	report := func(ctx context.Context, id vnet.PortID, r vnet.GuestReport) error {
		return h.ports.guestReport(ctx, id, r)
	}
	agent := func(ctx context.Context, id vnet.PortID, r vnet.GuestReport) error {
		return h.ports.agentReport(ctx, id, r)
	}
	refused := func(_ vnet.PortID, reason string) { h.metrics.imds.WithLabelValues(reason).Inc() }
	h.imds = imds.New(imds.Config{OnReport: report, OnAgent: agent, Refused: refused, Log: h.log})
	came := func(id vnet.PortID) {
		if p := h.ports.get(id); p != nil {
			p.kick()
		}
	}
	h.channel = channel.New(channel.Config{OnReport: agent, OnHello: came, Refused: refused, Log: h.log})
	h.close = append(h.close, h.channel.Shut)
}

// openDiagnosis makes what tells of frames and flows.
func (h *Host) openDiagnosis(context.Context) error {
	rules := h.networks.groups.name
	h.asks = newDiagnosis(h.maps, h.ports, rules, h.underlay.deviceName, vnet.MAC(h.underlay.uplink.MAC), h.log)
	var err error
	name := func(id int64) string { return ruleName(rules, id) }
	h.flowLog, err = newFlowLogger(h.maps, h.ports, name, filepath.Join(h.config.StateDir, "flows"), h.registry, h.log)
	if err != nil {
		return err
	}
	h.sweeper.told = h.flowLog.take
	return nil
}

func (h *Host) openClient(context.Context) error {
	tls, err := pki.Files{CA: h.config.CA, Cert: h.config.Cert, Key: h.config.Key}.ClientTLS(h.log)
	if err != nil {
		return fmt.Errorf("read the host's certificates: %w", err)
	}
	session, err := h.state.session()
	if err != nil {
		return err
	}
	var images []compute.Image
	if h.qemu != nil {
		if images, err = h.qemu.Images(); err != nil {
			return fmt.Errorf("list images: %w", err)
		}
	}
	h.client, err = client.New(client.Config{
		Endpoints: h.config.Servers, TLS: tls, Session: session, Log: h.log, OnAsk: h.asks.answer,
		Host: h.config.info(h.underlay.uplink.Addr, h.underlay.mtu, images, version()),
	}, handler{h.networks, h.ports, h.log})
	return err
}

func version() string {
	if b, ok := debug.ReadBuildInfo(); ok {
		return b.Main.Version
	}
	return ""
}

// Run works until ctx is done, and then lets go of everything as Close does.
func (h *Host) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	guests := &guests{ports: h.ports, checks: h.checks, sender: h.sender, metrics: h.metrics, mtu: h.underlay.mtu, log: h.log}
	read, stop, err := h.maps.traps(guests.take, guests.lost)
	if err != nil {
		return errors.Join(err, h.Close())
	}
	context.AfterFunc(ctx, stop)
	listeners, err := h.listenMetadata(ctx)
	if err != nil {
		stop()
		return errors.Join(err, h.Close())
	}
	h.ports.begin(ctx)
	h.running.Store(h.ports)
	g.Go(read)
	for _, l := range listeners {
		g.Go(func() error { return h.imds.Run(ctx, l) })
	}
	g.Go(func() error { h.networks.run(ctx); return nil })
	g.Go(func() error { h.checks.run(ctx); return nil })
	g.Go(func() error { h.sweeper.run(ctx); return nil })
	g.Go(func() error { return h.flowLog.run(ctx) })
	g.Go(func() error { return netdev.Watch(ctx, h.log, h.networks.changed) })
	g.Go(func() error { return h.client.Run(ctx) })
	g.Go(func() error { return h.serveMetrics(ctx) })
	g.Go(func() error { return serveHealth(ctx, h.config.StateDir, h.connected) })
	h.log.Info("ready", "name", h.config.Name, "uplink", h.underlay.uplink.Name, "address", h.underlay.uplink.Addr,
		"pa_prefix", h.underlay.prefix, "mtu", h.underlay.mtu, "ports", h.ports.count())
	err = g.Wait()
	h.ports.wg.Wait()
	return errors.Join(err, h.Close())
}

// connected reports whether the stream to a server is open.
func (h *Host) connected() bool {
	_, _, ok := h.client.Connected()
	return ok
}
