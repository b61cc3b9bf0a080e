package imds

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"replug/directory/vnet"
)

// openStackVersions are the dates under which the same is served.
var openStackVersions = []string{"2012-08-10", "2015-10-15", "2016-06-30", "2018-08-27", "latest"}

// openStack answers in the dialect of OpenStack's metadata service.
func (s *Server) openStack(w http.ResponseWriter, r *http.Request, who Caller) *refusal {
	if no := only(r, http.MethodGet); no != nil {
		return no
	}
	rest := strings.Trim(strings.TrimPrefix(r.URL.Path, "/openstack"), "/")
	if rest == "" {
		return text(w, "text/plain", strings.Join(openStackVersions, "\n"))
	}
	version, file, _ := strings.Cut(rest, "/")
	if !wants(openStackVersions, version) {
		return &unknownPath
	}
	pub, no := s.current(who)
	if no != nil {
		return no
	}
	switch file {
	case "":
		return text(w, "text/plain", "meta_data.json\nnetwork_data.json\nuser_data\nvendor_data.json")
	case "meta_data.json":
		send(w, http.StatusOK, openStackMeta(pub.doc, &pub.guest))
	case "network_data.json":
		send(w, http.StatusOK, openStackNetwork(&pub.guest))
	case "vendor_data.json":
		vendor := map[string]string{}
		if c := cloudConfig(pub.doc, true); c != "" {
			vendor["cloud-init"] = c
		}
		send(w, http.StatusOK, vendor)
	case "user_data":
		if len(pub.doc.UserData) == 0 {
			return &refusal{http.StatusNotFound, "no user data", "give the VM some", false}
		}
		return text(w, "application/octet-stream", string(pub.doc.UserData))
	default:
		return &unknownPath
	}
	return nil
}

func openStackMeta(d *vnet.Document, g *Guest) map[string]any {
	keys := map[string]string{}
	for i, k := range d.SSHKeys {
		keys[fmt.Sprintf("key-%d", i)] = k
	}
	return map[string]any{"uuid": g.UUID, "name": d.Instance, "hostname": d.Hostname, "public_keys": keys,
		"availability_zone": "replug", "launch_index": 0, "meta": map[string]string{}}
}

// openStackNetwork says that the NIC is configured by DHCP.
func openStackNetwork(g *Guest) map[string]any {
	networks := []map[string]string{}
	for _, a := range g.Addrs {
		kind := "ipv4_dhcp"
		if a.CA.Is6() {
			kind = "ipv6_dhcpv6-stateful"
		}
		networks = append(networks, map[string]string{"id": fmt.Sprintf("network%d", len(networks)), "type": kind, "link": "nic0", "network_id": "replug"})
	}
	services := []map[string]string{}
	for _, a := range g.DNS {
		services = append(services, map[string]string{"type": "dns", "address": a.String()})
	}
	return map[string]any{
		"links":    []map[string]string{{"id": "nic0", "type": "phy", "ethernet_mac_address": g.MAC.String()}},
		"networks": networks, "services": services,
	}
}

// noCloud answers cloud-init's NoCloud data source, over HTTP.
func (s *Server) noCloud(w http.ResponseWriter, r *http.Request, who Caller) *refusal {
	if no := only(r, http.MethodGet); no != nil {
		return no
	}
	pub, no := s.current(who)
	if no != nil {
		return no
	}
	switch strings.TrimPrefix(r.URL.Path, "/nocloud/") {
	case "meta-data":
		meta := map[string]any{"instance-id": pub.guest.UUID, "local-hostname": pub.doc.Hostname, "public-keys": pub.doc.SSHKeys}
		b, _ := json.Marshal(meta)                  // plain strings
		return text(w, "text/yaml", string(b)+"\n") // JSON is YAML
	case "user-data":
		return text(w, "application/octet-stream", string(pub.doc.UserData)) // empty is none
	case "vendor-data":
		return text(w, "text/yaml", cloudConfig(pub.doc, true))
	}
	return &unknownPath // network-config: what DHCP says is enough
}
