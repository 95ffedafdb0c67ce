-- What somebody may have meant by a name that does not exist.

create or replace function bridge.distance(p_one text, p_other text, p_most integer) returns integer language plpgsql immutable
  set search_path = pg_catalog, pg_temp as $$
  -- How many characters have to be put in, left out or exchanged to make one text of the other (Levenshtein); null when they are more than
  -- p_most.
declare
  v_before integer[] := array(select g from generate_series(0, length(p_other)) g);
  v_row integer[];
begin
  if abs(length(p_one) - length(p_other)) > p_most then
    return null;
  end if;
  for i in 1..length(p_one) loop
    v_row := array[i];
    for k in 1..length(p_other) loop
      v_row[k + 1] := least(v_before[k + 1] + 1, v_row[k] + 1, v_before[k] + (substr(p_one, i, 1) <> substr(p_other, k, 1))::integer);
    end loop;
    v_before := v_row;
    if (select min(n) from unnest(v_row) n) > p_most then
      return null;
    end if;
  end loop;
  return nullif(least(v_before[length(p_other) + 1], p_most + 1), p_most + 1);
end
$$;

create or replace function bridge.nearest(p_word text, p_names text[], p_most integer default 1, p_quoted boolean default false) returns text
  language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- The names that are most like a word, whatever the case, of several only those that are equally near: one slip in three characters, and
  -- one more, is forgiven. A word may also be how a name begins, or its last part (Berlin of Europe/Berlin, reset of public.reset).
  --
  --   p_most    how many names
  --   p_quoted  as literals
  --
  -- Returns  as "a or b"; null when none is like it
declare
  v_word constant text := lower(replace(p_word, ' ', '_'));
  v_last constant text := regexp_replace(v_word, '^.*[/.]', '');
  v_slips constant integer := length(v_word) / 3 + 1;
begin
  return (
    select string_agg(case when p_quoted then quote_literal(f.name) else f.name end, ' or ' order by f.name) from (
      select n.name, rank() over (order by d.distance) as place, row_number() over (order by d.distance, n.name) as number
      from (select distinct u.name, lower(replace(u.name, ' ', '_')) as plain from unnest(p_names) u (name)) n
      cross join lateral (
        select least(bridge.distance(v_word, n.plain, v_slips),
          bridge.distance(v_last, regexp_replace(n.plain, '^.*[/.]', ''), least(v_slips, length(v_last) / 3)) + 1,
          case when length(v_word) > 2 and starts_with(n.plain, v_word) then v_slips end) as distance) d
      where d.distance is not null and length(v_word) > 1) f
    where f.place = 1 and f.number <= p_most);
end
$$;
