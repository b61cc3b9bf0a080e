package imds

import (
	"encoding/base64"
	"encoding/xml"
	"net/http"
	"net/netip"
	"strings"

	"replug/directory/vnet"
)

// The metadata that cloud-init's Azure data source reads (its releases 22.4 to
// 26.2). How a guest in the pool becomes its owner's:
//
//	instance           ppsType Running: wait in the pool
//	reprovisiondata    404 until the owner's document is published, then ovf-env.xml
//	instance           ppsType None: that was all
const (
	pathInstance    = "/metadata/instance"
	pathNetwork     = "/metadata/instance/network"
	pathReprovision = "/metadata/reprovisiondata"
	pathVersions    = "/metadata/versions"
)

// azureVersions are the API versions that are understood. The older one lacks
// "extended": a guest falls back to it when the newer one is refused.
var azureVersions = []string{"2019-06-01", "2021-08-01"}

// azure answers in the dialect of Azure's metadata service.
func (s *Server) azure(w http.ResponseWriter, r *http.Request, who Caller) *refusal {
	if no := only(r, http.MethodGet); no != nil {
		return no
	}
	path := r.URL.Path
	if path != pathVersions && r.URL.Query().Get("api-version") == "" {
		return &refusal{http.StatusBadRequest, "no api-version", "add ?api-version=" + azureVersions[len(azureVersions)-1], false}
	}
	switch path {
	case pathVersions:
		send(w, http.StatusOK, map[string][]string{"apiVersions": azureVersions})
		return nil
	case pathReprovision:
		return s.reprovision(w, who)
	case pathInstance, pathNetwork:
		pub, no := s.current(who)
		if no != nil {
			return no
		}
		instance := instanceOf(pub.doc, &pub.guest)
		if path == pathNetwork {
			send(w, http.StatusOK, instance.Network)
			return nil
		}
		if r.URL.Query().Get("extended") != "true" {
			instance.Extended = nil
		}
		send(w, http.StatusOK, instance)
		return nil
	}
	return &unknownPath
}

// reprovision answers a guest that waits for its owner's document. It stays
// readable: a guest that reboots before it has reported reads it once more. Each
// answer but 200 and 404 sends the guest back to DHCP.
func (s *Server) reprovision(w http.ResponseWriter, who Caller) *refusal {
	pub, over := s.published(who)
	switch {
	case over, pub.renew:
		return &refusal{http.StatusServiceUnavailable, "another address waits", "renew the DHCP lease, then ask again", true}
	case pub.doc != nil && pub.doc.Partial():
		s.noteAsked(who.Port, pub.doc.Epoch)
		fallthrough
	case pub.doc == nil:
		return &refusal{http.StatusNotFound, "nothing published", "ask again in a second", false}
	}
	b, err := xml.Marshal(ovfOf(pub.doc))
	if err != nil {
		s.cfg.Log.Error("document can't be written as ovf-env.xml", "port", who.Port, "err", err)
		return &refusal{http.StatusInternalServerError, "document can't be written", "correct the VM's settings", false}
	}
	return text(w, "text/xml; charset=utf-8", xml.Header+string(b))
}

// noteAsked remembers that a guest in the pool polls.
func (s *Server) noteAsked(id vnet.PortID, e vnet.Epoch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.port(id); p.epoch == e {
		p.polls = true
	}
}

// An instance is what 2021-08-01 says of a machine, as far as cloud-init reads it.
type instance struct {
	Compute  azureCompute   `json:"compute"`
	Network  azureNetwork   `json:"network"`
	Extended *azureExtended `json:"extended,omitempty"`
}

type azureCompute struct {
	Location   string       `json:"location"`
	Name       string       `json:"name"`
	OSType     string       `json:"osType"`
	VMID       string       `json:"vmId"`
	OSProfile  azureProfile `json:"osProfile"`
	PublicKeys []azureKey   `json:"publicKeys"` // never absent: else the guest asks for certificates
	UserData   string       `json:"userData"`   // base64
}

type azureProfile struct {
	ComputerName string `json:"computerName"`
	AdminName    string `json:"adminUsername"` // "": the image's own
	NoPasswords  string `json:"disablePasswordAuthentication"`
}

type azureKey struct {
	Path string `json:"path"`
	Data string `json:"keyData"`
}

type azureExtended struct {
	Compute struct {
		PPSType string `json:"ppsType"`
	} `json:"compute"`
}

type azureNetwork struct {
	Interface []azureNIC `json:"interface"`
}

type azureNIC struct {
	MAC  string      `json:"macAddress"`
	IPv4 azureFamily `json:"ipv4"`
	IPv6 azureFamily `json:"ipv6"`
}

type azureFamily struct {
	Addresses []azureAddress `json:"ipAddress"`
	Subnets   []azureSubnet  `json:"subnet,omitempty"`
}

type azureAddress struct {
	Private string `json:"privateIpAddress"`
	Public  string `json:"publicIpAddress"`
}

type azureSubnet struct {
	Address string `json:"address"`
	Prefix  string `json:"prefix"`
}

func instanceOf(d *vnet.Document, g *Guest) *instance {
	i := &instance{Extended: &azureExtended{}}
	i.Compute = azureCompute{
		Name: d.Instance, OSType: "Linux", VMID: g.UUID, PublicKeys: []azureKey{},
		OSProfile: azureProfile{ComputerName: d.Hostname, AdminName: d.User, NoPasswords: "true"},
	}
	i.Network.Interface = []azureNIC{nicOf(g)}
	i.Extended.Compute.PPSType = "None"
	switch {
	case d.Partial() && g.Personality == vnet.PersonalityCloudInitSavable:
		i.Extended.Compute.PPSType = "Savable"
	case d.Partial():
		i.Extended.Compute.PPSType = "Running"
	default:
		i.Compute.UserData = base64.StdEncoding.EncodeToString(userData(d))
		for _, k := range d.SSHKeys {
			i.Compute.PublicKeys = append(i.Compute.PublicKeys, azureKey{Path: keyPath(d.User), Data: k})
		}
	}
	return i
}

// nicOf describes the NIC. What it says decides which families the guest
// configures: the first address of each by DHCP, others by hand.
func nicOf(g *Guest) azureNIC {
	nic := azureNIC{MAC: strings.ToUpper(strings.ReplaceAll(g.MAC.String(), ":", ""))}
	nic.IPv4.Addresses, nic.IPv6.Addresses = []azureAddress{}, []azureAddress{}
	for _, a := range g.Addrs {
		family := &nic.IPv4
		if a.CA.Is6() {
			family = &nic.IPv6
		}
		p := a.Prefix()
		family.Addresses = append(family.Addresses, azureAddress{Private: a.CA.String()})
		family.Subnets = append(family.Subnets, azureSubnet{Address: p.Addr().String(), Prefix: bits(p)})
	}
	return nic
}

func bits(p netip.Prefix) string { return p.String()[strings.LastIndexByte(p.String(), '/')+1:] }

func keyPath(user string) string { return "/home/" + user + "/.ssh/authorized_keys" }

// An ovf is ovf-env.xml: the owner's document as cloud-init wants it when it leaves
// the pool.
type ovf struct {
	XMLName   xml.Name `xml:"http://schemas.dmtf.org/ovf/environment/1 Environment"`
	Provision struct {
		Set ovfSet `xml:"http://schemas.microsoft.com/windowsazure LinuxProvisioningConfigurationSet"`
	} `xml:"http://schemas.microsoft.com/windowsazure ProvisioningSection"`
	Platform struct {
		Settings struct {
			Preprovisioned bool `xml:"http://schemas.microsoft.com/windowsazure PreprovisionedVm"`
		} `xml:"http://schemas.microsoft.com/windowsazure PlatformSettings"`
	} `xml:"http://schemas.microsoft.com/windowsazure PlatformSettingsSection"`
}

// ovfSet is the part of an [ovf] that says something. The user's name must be
// there, though it may be empty: then the image's own user stays. Keys are in the
// instance.
type ovfSet struct {
	HostName    string `xml:"http://schemas.microsoft.com/windowsazure HostName"`
	UserName    string `xml:"http://schemas.microsoft.com/windowsazure UserName"`
	NoPasswords bool   `xml:"http://schemas.microsoft.com/windowsazure DisableSshPasswordAuthentication"`
	CustomData  string `xml:"http://schemas.microsoft.com/windowsazure CustomData,omitempty"`
}

func ovfOf(d *vnet.Document) *ovf {
	o := &ovf{}
	o.Provision.Set = ovfSet{
		HostName: d.Hostname, UserName: d.User, NoPasswords: true,
		CustomData: base64.StdEncoding.EncodeToString(userData(d)),
	}
	return o
}
