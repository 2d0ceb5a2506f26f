# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_f2bmqtt_global_optspecs
    string join \n h/help V/version
end

function __fish_f2bmqtt_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_f2bmqtt_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_f2bmqtt_using_subcommand
    set -l cmd (__fish_f2bmqtt_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c f2bmqtt -n "__fish_f2bmqtt_needs_command" -s h -l help -d 'Print help'
complete -c f2bmqtt -n "__fish_f2bmqtt_needs_command" -s V -l version -d 'Print version'
complete -c f2bmqtt -n "__fish_f2bmqtt_needs_command" -f -a "status" -d 'Show the state of this host, the broker and every host of the fleet'
complete -c f2bmqtt -n "__fish_f2bmqtt_needs_command" -f -a "check" -d 'Diagnose problems and suggest fixes'
complete -c f2bmqtt -n "__fish_f2bmqtt_needs_command" -f -a "list" -d 'List all bans of the fleet, or explain why an address is banned'
complete -c f2bmqtt -n "__fish_f2bmqtt_needs_command" -f -a "watch" -d 'Watch bans, hosts and jails live; q quits'
complete -c f2bmqtt -n "__fish_f2bmqtt_needs_command" -f -a "ban" -d 'Ban addresses on every host that has the jail'
complete -c f2bmqtt -n "__fish_f2bmqtt_needs_command" -f -a "unban" -d 'Unban addresses on every host'
complete -c f2bmqtt -n "__fish_f2bmqtt_needs_command" -f -a "forget" -d 'Remove a host that is gone for good from the fleet'
complete -c f2bmqtt -n "__fish_f2bmqtt_needs_command" -f -a "notify" -d 'Announce a ban or unban to the fleet; called by fail2ban\'s actions'
complete -c f2bmqtt -n "__fish_f2bmqtt_needs_command" -f -a "subscribe" -d 'Share bans with the fleet until stopped; run by the service f2bmqttsub'
complete -c f2bmqtt -n "__fish_f2bmqtt_needs_command" -f -a "cut" -d 'End the open connections of a banned address; called by fail2ban\'s actions'
complete -c f2bmqtt -n "__fish_f2bmqtt_needs_command" -f -a "report" -d 'Report an address to AbuseIPDB'
complete -c f2bmqtt -n "__fish_f2bmqtt_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand status" -l json -d 'Print one JSON object'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand check" -l json -d 'Print one JSON object'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand list" -l jail -d 'Only bans in this jail' -r
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand list" -l host -d 'Only bans that HOST detected' -r
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand list" -l json -d 'Print one JSON object'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand watch" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand ban" -s y -l yes -d 'Do not ask for confirmation'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand ban" -l json -d 'Print one JSON object'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand ban" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand unban" -l jail -d 'Only in this jail' -r
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand unban" -s y -l yes -d 'Do not ask for confirmation'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand unban" -l json -d 'Print one JSON object'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand unban" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand forget" -s y -l yes -d 'Do not ask for confirmation, and remove online hosts, too'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand forget" -l json -d 'Print one JSON object'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand forget" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand notify" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand subscribe" -s h -l help -d 'Print help'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand cut" -s h -l help -d 'Print help'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand report" -l ip -d 'The address, IPv4 or IPv6' -r
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand report" -l comment -d 'What happened, for example log lines' -r
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand report" -l categories -d 'Numbers of the categories, separated by commas' -r
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand report" -l bantime -d 'How long the address is banned: seconds, or 10m, 2h, 1d, 1w, 1y' -r
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand report" -l dry-run -d 'Print the report without sending it'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand report" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand help; and not __fish_seen_subcommand_from status check list watch ban unban forget notify subscribe cut report help" -f -a "status" -d 'Show the state of this host, the broker and every host of the fleet'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand help; and not __fish_seen_subcommand_from status check list watch ban unban forget notify subscribe cut report help" -f -a "check" -d 'Diagnose problems and suggest fixes'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand help; and not __fish_seen_subcommand_from status check list watch ban unban forget notify subscribe cut report help" -f -a "list" -d 'List all bans of the fleet, or explain why an address is banned'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand help; and not __fish_seen_subcommand_from status check list watch ban unban forget notify subscribe cut report help" -f -a "watch" -d 'Watch bans, hosts and jails live; q quits'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand help; and not __fish_seen_subcommand_from status check list watch ban unban forget notify subscribe cut report help" -f -a "ban" -d 'Ban addresses on every host that has the jail'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand help; and not __fish_seen_subcommand_from status check list watch ban unban forget notify subscribe cut report help" -f -a "unban" -d 'Unban addresses on every host'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand help; and not __fish_seen_subcommand_from status check list watch ban unban forget notify subscribe cut report help" -f -a "forget" -d 'Remove a host that is gone for good from the fleet'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand help; and not __fish_seen_subcommand_from status check list watch ban unban forget notify subscribe cut report help" -f -a "notify" -d 'Announce a ban or unban to the fleet; called by fail2ban\'s actions'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand help; and not __fish_seen_subcommand_from status check list watch ban unban forget notify subscribe cut report help" -f -a "subscribe" -d 'Share bans with the fleet until stopped; run by the service f2bmqttsub'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand help; and not __fish_seen_subcommand_from status check list watch ban unban forget notify subscribe cut report help" -f -a "cut" -d 'End the open connections of a banned address; called by fail2ban\'s actions'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand help; and not __fish_seen_subcommand_from status check list watch ban unban forget notify subscribe cut report help" -f -a "report" -d 'Report an address to AbuseIPDB'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand help; and not __fish_seen_subcommand_from status check list watch ban unban forget notify subscribe cut report help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand ban" -f -a "(f2bmqtt names jails 2>/dev/null)"
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand unban" -f -a "(f2bmqtt names addresses 2>/dev/null)"
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand list" -f -a "(f2bmqtt names addresses 2>/dev/null)"
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand forget" -f -a "(f2bmqtt names hosts 2>/dev/null)"
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand list" -l jail -x -a "(f2bmqtt names jails 2>/dev/null)"
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand list" -l host -x -a "(f2bmqtt names hosts 2>/dev/null)"
complete -c f2bmqtt -n "__fish_f2bmqtt_using_subcommand unban" -l jail -x -a "(f2bmqtt names jails 2>/dev/null)"
