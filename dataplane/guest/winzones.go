package guest

import "strings"

// windowsZone returns Windows' name of an IANA time zone, as the Unicode consortium
// maps them (CLDR, windowsZones.xml): those of it that people live in.
func windowsZone(tz string) (string, bool) {
	for line := range strings.Lines(zones) {
		id, names, _ := strings.Cut(strings.TrimSpace(line), ": ")
		for name := range strings.FieldsSeq(names) {
			if name == tz {
				return id, true
			}
		}
	}
	return "", false
}

const zones = `UTC: UTC Etc/UTC Etc/GMT Etc/UCT
GMT Standard Time: Europe/London Europe/Dublin Europe/Lisbon Atlantic/Canary Atlantic/Madeira Atlantic/Faroe Europe/Jersey Europe/Guernsey Europe/Isle_of_Man
Greenwich Standard Time: Atlantic/Reykjavik Africa/Abidjan Africa/Accra Africa/Dakar Africa/Monrovia Africa/Bamako Africa/Banjul Africa/Conakry Africa/Freetown Africa/Lome Africa/Nouakchott Africa/Ouagadougou
Morocco Standard Time: Africa/Casablanca
W. Europe Standard Time: Europe/Berlin Europe/Zurich Europe/Vienna Europe/Rome Europe/Amsterdam Europe/Stockholm Europe/Oslo Europe/Luxembourg Europe/Monaco Europe/Malta Europe/Andorra Europe/Vaduz Europe/San_Marino Europe/Vatican Europe/Busingen Arctic/Longyearbyen
Central Europe Standard Time: Europe/Budapest Europe/Prague Europe/Bratislava Europe/Ljubljana Europe/Belgrade Europe/Podgorica Europe/Tirane
Romance Standard Time: Europe/Paris Europe/Madrid Europe/Brussels Europe/Copenhagen Africa/Ceuta
Central European Standard Time: Europe/Warsaw Europe/Zagreb Europe/Sarajevo Europe/Skopje
W. Central Africa Standard Time: Africa/Lagos Africa/Algiers Africa/Tunis Africa/Douala Africa/Kinshasa Africa/Luanda Africa/Libreville Africa/Niamey Africa/Ndjamena Africa/Brazzaville Africa/Bangui Africa/Malabo Africa/Porto-Novo
GTB Standard Time: Europe/Bucharest Europe/Athens Asia/Nicosia
E. Europe Standard Time: Europe/Chisinau
FLE Standard Time: Europe/Kyiv Europe/Kiev Europe/Helsinki Europe/Riga Europe/Sofia Europe/Tallinn Europe/Vilnius Europe/Mariehamn
Middle East Standard Time: Asia/Beirut
Egypt Standard Time: Africa/Cairo
Israel Standard Time: Asia/Jerusalem
South Africa Standard Time: Africa/Johannesburg Africa/Harare Africa/Lusaka Africa/Maputo Africa/Gaborone Africa/Kigali Africa/Blantyre Africa/Bujumbura Africa/Lubumbashi Africa/Maseru Africa/Mbabane
Namibia Standard Time: Africa/Windhoek
Libya Standard Time: Africa/Tripoli
Sudan Standard Time: Africa/Khartoum
Kaliningrad Standard Time: Europe/Kaliningrad
Jordan Standard Time: Asia/Amman
Syria Standard Time: Asia/Damascus
Turkey Standard Time: Europe/Istanbul
Arabic Standard Time: Asia/Baghdad
Arab Standard Time: Asia/Riyadh Asia/Kuwait Asia/Bahrain Asia/Qatar Asia/Aden
Belarus Standard Time: Europe/Minsk
Russian Standard Time: Europe/Moscow Europe/Simferopol
E. Africa Standard Time: Africa/Nairobi Africa/Addis_Ababa Africa/Dar_es_Salaam Africa/Kampala Africa/Mogadishu Africa/Djibouti Indian/Antananarivo
Iran Standard Time: Asia/Tehran
Arabian Standard Time: Asia/Dubai Asia/Muscat
Azerbaijan Standard Time: Asia/Baku
Russia Time Zone 3: Europe/Samara
Mauritius Standard Time: Indian/Mauritius Indian/Reunion Indian/Mahe
Georgian Standard Time: Asia/Tbilisi
Caucasus Standard Time: Asia/Yerevan
Afghanistan Standard Time: Asia/Kabul
West Asia Standard Time: Asia/Tashkent Asia/Samarkand Asia/Dushanbe Asia/Ashgabat Indian/Maldives
Ekaterinburg Standard Time: Asia/Yekaterinburg
Pakistan Standard Time: Asia/Karachi
India Standard Time: Asia/Kolkata Asia/Calcutta
Sri Lanka Standard Time: Asia/Colombo
Nepal Standard Time: Asia/Kathmandu Asia/Katmandu
Central Asia Standard Time: Asia/Bishkek Asia/Urumqi
Bangladesh Standard Time: Asia/Dhaka Asia/Thimphu
Omsk Standard Time: Asia/Omsk
Myanmar Standard Time: Asia/Yangon Asia/Rangoon
SE Asia Standard Time: Asia/Bangkok Asia/Jakarta Asia/Ho_Chi_Minh Asia/Saigon Asia/Phnom_Penh Asia/Vientiane Asia/Pontianak
N. Central Asia Standard Time: Asia/Novosibirsk
North Asia Standard Time: Asia/Krasnoyarsk
China Standard Time: Asia/Shanghai Asia/Hong_Kong Asia/Macau
North Asia East Standard Time: Asia/Irkutsk
Singapore Standard Time: Asia/Singapore Asia/Kuala_Lumpur Asia/Manila Asia/Brunei Asia/Makassar Asia/Kuching
W. Australia Standard Time: Australia/Perth
Taipei Standard Time: Asia/Taipei
Ulaanbaatar Standard Time: Asia/Ulaanbaatar
Tokyo Standard Time: Asia/Tokyo Asia/Jayapura Pacific/Palau
Korea Standard Time: Asia/Seoul
Yakutsk Standard Time: Asia/Yakutsk
Cen. Australia Standard Time: Australia/Adelaide Australia/Broken_Hill
AUS Central Standard Time: Australia/Darwin
E. Australia Standard Time: Australia/Brisbane
AUS Eastern Standard Time: Australia/Sydney Australia/Melbourne
West Pacific Standard Time: Pacific/Port_Moresby Pacific/Guam Pacific/Saipan
Tasmania Standard Time: Australia/Hobart
Vladivostok Standard Time: Asia/Vladivostok
Central Pacific Standard Time: Pacific/Guadalcanal Pacific/Noumea Pacific/Efate
Magadan Standard Time: Asia/Magadan
Sakhalin Standard Time: Asia/Sakhalin
Russia Time Zone 11: Asia/Kamchatka
New Zealand Standard Time: Pacific/Auckland Antarctica/McMurdo
Fiji Standard Time: Pacific/Fiji
Tonga Standard Time: Pacific/Tongatapu
Samoa Standard Time: Pacific/Apia
Azores Standard Time: Atlantic/Azores
Cape Verde Standard Time: Atlantic/Cape_Verde
E. South America Standard Time: America/Sao_Paulo
Argentina Standard Time: America/Buenos_Aires America/Argentina/Buenos_Aires America/Argentina/Cordoba America/Argentina/Mendoza America/Argentina/Ushuaia
SA Eastern Standard Time: America/Cayenne America/Fortaleza America/Belem America/Recife America/Paramaribo
Greenland Standard Time: America/Godthab America/Nuuk
Montevideo Standard Time: America/Montevideo
Bahia Standard Time: America/Bahia
Newfoundland Standard Time: America/St_Johns
Atlantic Standard Time: America/Halifax Atlantic/Bermuda America/Moncton
Venezuela Standard Time: America/Caracas
Central Brazilian Standard Time: America/Cuiaba
SA Western Standard Time: America/La_Paz America/Puerto_Rico America/Manaus America/Santo_Domingo America/Barbados America/Martinique America/Guyana America/Port_of_Spain America/Curacao
Pacific SA Standard Time: America/Santiago
Paraguay Standard Time: America/Asuncion
Eastern Standard Time: America/New_York America/Toronto America/Detroit America/Montreal America/Nassau America/Kentucky/Louisville
US Eastern Standard Time: America/Indianapolis America/Indiana/Indianapolis
SA Pacific Standard Time: America/Bogota America/Lima America/Panama America/Guayaquil America/Jamaica America/Cayman
Eastern Standard Time (Mexico): America/Cancun
Cuba Standard Time: America/Havana
Haiti Standard Time: America/Port-au-Prince
Central Standard Time: America/Chicago America/Winnipeg America/Menominee America/Matamoros
Central Standard Time (Mexico): America/Mexico_City America/Monterrey America/Merida
Canada Central Standard Time: America/Regina
Central America Standard Time: America/Guatemala America/Costa_Rica America/El_Salvador America/Managua America/Tegucigalpa America/Belize Pacific/Galapagos
Easter Island Standard Time: Pacific/Easter
Mountain Standard Time: America/Denver America/Edmonton America/Boise America/Ciudad_Juarez
US Mountain Standard Time: America/Phoenix America/Hermosillo
Mountain Standard Time (Mexico): America/Mazatlan
Yukon Standard Time: America/Whitehorse
Pacific Standard Time: America/Los_Angeles America/Vancouver
Pacific Standard Time (Mexico): America/Tijuana
Alaskan Standard Time: America/Anchorage America/Juneau
Hawaiian Standard Time: Pacific/Honolulu Pacific/Tahiti Pacific/Rarotonga
Aleutian Standard Time: America/Adak
`
