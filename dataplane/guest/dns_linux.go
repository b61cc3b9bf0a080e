package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"replug/directory/vnet"
)

// A resolver is a program of the guest that writes name servers of its own, and how
// it is told of better ones: by a file, or by a line of its configuration.
type resolver struct {
	dir     string // it is there if this is
	file    string
	start   string // of the line; "": the file is ours
	end     string
	between string
	takes   func(netip.Addr) bool // of which family; nil: of both
	tell    []string              // run afterwards, if it runs
}

const byUs = "; # by replug-guest"

var resolvers = []resolver{
	{dir: "etc/systemd", file: "etc/systemd/resolved.conf.d/60-replug.conf", start: "[Resolve]\nDNS=", between: " ",
		tell: []string{"systemctl", "try-reload-or-restart", "systemd-resolved"}},
	{dir: "etc/NetworkManager", file: "etc/NetworkManager/conf.d/60-replug.conf", start: "[global-dns-domain-*]\nservers=", between: ",",
		tell: []string{"nmcli", "general", "reload"}},
	// A server of the other family is an error to dhclient, which skips the line then.
	{dir: "etc/dhcp/dhclient.conf", file: "etc/dhcp/dhclient.conf", start: "supersede domain-name-servers ", end: byUs, between: ", ", takes: netip.Addr.Is4},
	{dir: "etc/dhcp/dhclient.conf", file: "etc/dhcp/dhclient.conf", start: "supersede dhcp6.name-servers ", end: byUs, between: ", ", takes: netip.Addr.Is6},
	{dir: "etc/dhcpcd.conf", file: "etc/dhcpcd.conf", start: "static domain_name_servers=", between: " "},
}

// setDNS puts the document's name servers before those of a lease, now and after
// each renewal; without any, what an earlier document has set is taken back.
func (m machine) setDNS(d *vnet.Document, s *state) error {
	if len(d.DNS) == 0 && len(s.DNS) == 0 {
		return nil
	}
	for _, a := range d.DNS {
		if !a.IsValid() || a.Zone() != "" {
			return fmt.Errorf("name server %s: %w", a, errInvalid)
		}
	}
	old := s.DNS
	s.DNS = d.DNS
	var errs []error
	for _, r := range resolvers {
		if _, err := os.Stat(m.path(r.dir)); err != nil {
			continue
		}
		errs = append(errs, m.tellResolver(&r, d.DNS, old))
	}
	return errors.Join(append(errs, m.names.setDocument(d.DNS))...)
}

func (m machine) tellResolver(r *resolver, servers, old []netip.Addr) error {
	if r.takes != nil {
		servers = slices.DeleteFunc(slices.Clone(servers), func(a netip.Addr) bool { return !r.takes(a) })
	}
	text := func(all []netip.Addr) string { return r.start + join(all, r.between) + r.end }
	ours := func(l string) bool {
		return l == text(old) || l == text(servers) || r.end == byUs && strings.HasPrefix(l, r.start) && strings.HasSuffix(l, byUs)
	}
	var err error
	switch {
	case !strings.HasPrefix(r.start, "["):
		err = m.edit(r.file, 0o644, func(lines []string) []string {
			lines = slices.DeleteFunc(lines, ours)
			if len(servers) == 0 {
				return lines
			}
			return append(lines, text(servers))
		})
	case len(servers) == 0:
		if err = os.Remove(m.path(r.file)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	default:
		err = m.write(r.file, 0o644, []byte(text(servers)+"\n"))
	}
	if err != nil {
		return fmt.Errorf("set name servers: %w", err)
	}
	if m.root == "/" && len(r.tell) > 0 {
		_ = run(context.Background(), r.tell...) // it may not run, or not know the word: then its next start reads the file
	}
	return nil
}
